//! Tables 1 to 3 and Figure 6: provisioning, update and storage, on one store.

use std::fs;
use std::path::Path;

use anyhow::Result;
use strata_tests::goals::Goals;

use crate::appliances::Archive;
use crate::mirror::Mirror;
use crate::site::Site;
use crate::{Arguments, images, plain, provisioning, site, storage, update};

const UPDATE: update::Size = update::Size { rounds: 7, fleets: &[1, 10, 50, 500], suspended: 50 };
const QUICK_UPDATE: update::Size = update::Size { rounds: 3, fleets: &[1, 10], suspended: 10 };
const PROVISIONING: provisioning::Size = provisioning::Size { rounds: 5, batch: 1000 };
const QUICK_PROVISIONING: provisioning::Size = provisioning::Size { rounds: 3, batch: 200 };
/// The VAs that Figure 6 counts.
const STORED: usize = 50;

/// Measures the parts that are wanted, and writes their sections.
pub fn measure(arguments: &Arguments, work: &Path, goals: &mut Goals) -> Result<()> {
    let (update_size, provisioning_size) = match arguments.quick {
        true => (QUICK_UPDATE, QUICK_PROVISIONING),
        false => (UPDATE, PROVISIONING),
    };
    if !["provisioning", "update", "storage"].iter().any(|part| arguments.wants(part)) {
        return Ok(());
    }
    goals.progress("packages");
    let archive = Archive::read(&arguments.packages)?;
    let files = archive.files(&[])?;
    // Only for the mirror: mmdebstrap chooses it where Strata chooses an alternative.
    archive.files(&[vec!["usr-is-merged"]])?;
    let (roots, disks) = (work.join("roots"), work.join("images"));
    let mirror = Mirror::make(&work.join("mirror"), &archive)?;
    plain::make_roots(&roots, &mirror, |what| goals.progress(what))?;
    goals.progress(&format!("a store of {} layers", files.len()));
    let mut site = Site::make(&arguments.strata, work, &files, site::appliances())?;
    if arguments.wants("update") {
        let managed =
            update::by_strata(&mut site, &archive, update_size, |what| goals.progress(what))?;
        let plain =
            update::by_package_tool(&roots, &mirror, &archive, update_size.suspended, |what| {
                goals.progress(what);
            })?;
        let from = goals.goals().len();
        let text = update::tell(&managed, &plain, &archive, goals);
        arguments.write("update", &text, &goals.goals()[from..])?;
    }
    if arguments.wants("provisioning") || arguments.wants("storage") {
        goals.progress("disk images");
        images::make_bases(&roots, &disks)?;
    }
    // The images have all of it.
    fs::remove_dir_all(&roots)?;
    if arguments.wants("storage") {
        goals.progress("storage");
        if site.vas().len() < STORED {
            site.grow_to(STORED, STORED)?;
            site.resume_all()?;
        }
        let from = goals.goals().len();
        let mut text = storage::measure(&site, &archive, &disks, goals)?;
        let pairs = archive.former()?;
        goals.progress(&format!("two versions of {} layers", pairs.len()));
        text.push_str(&storage::versions(&site, work, &pairs, goals)?);
        arguments.write("storage", &text, &goals.goals()[from..])?;
    }
    if arguments.wants("provisioning") {
        goals.progress("provisioning");
        let from = goals.goals().len();
        let text = provisioning::measure(&site, &disks, provisioning_size, goals)?;
        arguments.write("provisioning", &text, &goals.goals()[from..])?;
    }
    drop(site);
    if disks.exists() {
        fs::remove_dir_all(&disks)?;
    }
    Ok(())
}
