//! `ci/proof dependencies`: what packages depend on by their libraries, found by
//! `strata layer infer` and by dpkg-shlibdeps, which runs in a tree with all of them.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use strata_core::manifest::{Kind, Manifest};
use strata_core::names::unit_directory;
use strata_core::relation::{Comparison, Dependency, Relation, parse_dependencies, print_list};
use strata_store::Store;
use strata_tests::random::Random;

use crate::conversion;

/// The repository of the packages.
const REPOSITORY: &str = "closure";
/// Where packages stand as though they were just built.
const SOURCE: &str = "source";

/// What dpkg-shlibdeps says of a library whose package does not describe it.
const UNDESCRIBED: &str = "no dependency information found for";

pub struct Proof<'w> {
    pub strata: PathBuf,
    pub work: &'w Path,
    pub database: PathBuf,
    /// Where downloaded packages stay.
    pub packages: PathBuf,
}

/// A package of the closure.
struct Package {
    name: String,
    unit: PathBuf,
    manifest: Manifest,
    /// Its programs and libraries.
    programs: Vec<PathBuf>,
}

/// What one side found: dependencies, or why there are none.
type Found = std::result::Result<Vec<Dependency>, String>;

impl Proof<'_> {
    /// Compares `count` packages. Returns whether all agree.
    pub fn compare(&self, count: usize, seed: u64, json: Option<&Path>) -> Result<bool> {
        let files = conversion::download(&self.database, &self.packages, None)?;
        eprintln!("importing {} packages", files.len());
        self.import(&files)?;
        let all = self.read()?;
        let root = self.work.join("root");
        eprintln!("a tree with all of them, for dpkg-shlibdeps");
        make_root(&root, &all)?;
        let chosen = sample(&all, count, seed);
        ensure!(chosen.len() == count, "only {} packages have programs", chosen.len());
        let (mut differing, mut undescribed, mut dependencies) = (Vec::new(), Vec::new(), 0);
        let (mut our_time, mut their_time) = (Duration::ZERO, Duration::ZERO);
        for package in &chosen {
            let (ours, took) = timed(|| self.ours(package))?;
            our_time += took;
            let (theirs, took) = timed(|| theirs(&root, package))?;
            their_time += took;
            dependencies += ours.as_ref().map_or(0, Vec::len);
            if ours.is_ok() && theirs.as_ref().is_err_and(|error| error.contains(UNDESCRIBED)) {
                // Strata takes the layer that has the file, in the version at hand or later.
                eprintln!("{}: {}", package.name, theirs.err().unwrap_or_default());
                undescribed.push(package.name.as_str());
                continue;
            }
            if let Some(difference) = difference(&ours, &theirs) {
                let difference = json!({ "package": package.name, "difference": difference });
                eprintln!("{difference}");
                differing.push(difference);
            }
        }
        println!("{:<52} {:>6}", "packages", chosen.len());
        println!("{:<52} {dependencies:>6}", "dependencies that Strata found");
        println!("{:<52} {:>6}", "packages for which dpkg-shlibdeps differs", differing.len());
        let what = "it refuses, as no package describes a library";
        println!("{what:<52} {:>6}", undescribed.len());
        let (ours, theirs) = (our_time.as_secs_f64(), their_time.as_secs_f64());
        println!("{:<52} {ours:>6.1} s", "strata layer infer");
        println!("{:<52} {theirs:>6.1} s", "dpkg-shlibdeps");
        if let Some(path) = json {
            let names: Vec<_> = chosen.iter().map(|package| package.name.as_str()).collect();
            let report = json!({
                "seed": seed, "packages": names, "dependencies": dependencies, "different": differing,
                "undescribed": undescribed,
                "strata_s": ours, "dpkg_shlibdeps_s": theirs,
            });
            let text = serde_json::to_string_pretty(&report)? + "\n";
            fs::write(path, text).with_context(|| path.display().to_string())?;
        }
        Ok(differing.is_empty())
    }

    fn store(&self) -> PathBuf {
        self.work.join("converted")
    }

    fn import(&self, files: &[PathBuf]) -> Result<()> {
        let mut init = Command::new(&self.strata);
        good(init.arg("init").arg(self.store()))?;
        let mut import = Command::new(&self.strata);
        import.args(["layer", "import", "--repo", REPOSITORY, "--store"]).arg(self.store());
        good(import.args(files)).map(drop)
    }

    fn read(&self) -> Result<Vec<Package>> {
        let store = Store::open(&self.store())?;
        let repository = REPOSITORY.parse()?;
        let mut all = Vec::new();
        for unit in store.database(&repository)?.units() {
            let (layer, version) = (&unit.metadata.layer, &unit.metadata.version);
            let manifest = store.manifest(&repository, layer, version)?;
            let directory = self.store().join("repos").join(REPOSITORY);
            let directory = directory.join(unit_directory(layer, version));
            let programs = programs(&directory.join("filesystem"), &manifest)?;
            all.push(Package { name: layer.to_string(), unit: directory, manifest, programs });
        }
        Ok(all)
    }

    fn ours(&self, package: &Package) -> Result<Found> {
        let mut command = Command::new(&self.strata);
        command.args(["layer", "infer", "--output", "json", "--store"]).arg(self.store());
        let output = command.arg(format!("{REPOSITORY}/{}", package.name)).output()?;
        if !matches!(output.status.code(), Some(0 | 1)) {
            return Ok(Err(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        let said: Value = serde_json::from_slice(&output.stdout)?;
        let of_library = |one: &&Value| one["library"].is_string();
        let list = |name: &str| said[name].as_array().cloned().unwrap_or_default();
        if let Some(missing) = list("missing").iter().find(of_library) {
            return Ok(Err(missing.to_string()));
        }
        let found = list("dependencies");
        let found: Vec<_> =
            found.iter().filter(of_library).filter_map(|one| one["dependency"].as_str()).collect();
        Ok(Ok(parse(&found.join(", "))?))
    }
}

fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    let begun = Instant::now();
    Ok((work()?, begun.elapsed()))
}

fn good(command: &mut Command) -> Result<Output> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output)
}

fn parse(text: &str) -> Result<Vec<Dependency>> {
    parse_dependencies(text).map_err(|(at, error)| anyhow::anyhow!("{text}: {at}: {error}"))
}

/// The ELF files of a layer that are programs or shared libraries, as dh_shlibdeps
/// looks for them.
fn programs(files: &Path, manifest: &Manifest) -> Result<Vec<PathBuf>> {
    use std::io::Read as _;
    let mut found = Vec::new();
    for entry in manifest.entries() {
        let passed_over = [&b"usr/lib/debug/"[..], b"usr/share/doc/"];
        let path = Path::new(std::ffi::OsStr::from_bytes(&entry.path));
        if !matches!(entry.kind, Kind::Regular { .. })
            || passed_over.iter().any(|start| entry.path.starts_with(start))
        {
            continue;
        }
        let mut start = Vec::new();
        let file = fs::File::open(files.join(path)).with_context(|| path.display().to_string())?;
        file.take(18).read_to_end(&mut start)?;
        // Little endian, as this machine is: ET_EXEC and ET_DYN.
        if start.starts_with(b"\x7fELF") && matches!(start.get(16), Some(2 | 3)) {
            found.push(path.to_owned());
        }
    }
    Ok(found)
}

/// Packages that have programs; the same seed gives the same ones.
fn sample(all: &[Package], count: usize, seed: u64) -> Vec<&Package> {
    let mut left: Vec<&Package> = all.iter().filter(|one| !one.programs.is_empty()).collect();
    let mut random = Random::new(seed);
    let mut chosen = Vec::new();
    while chosen.len() < count && !left.is_empty() {
        chosen.push(left.swap_remove(random.below(left.len())));
    }
    chosen
}

/// A tree in which all packages are installed, as far as dpkg-shlibdeps looks: their
/// files, what dpkg's database says of them, and its own programs, which are among them.
fn make_root(root: &Path, all: &[Package]) -> Result<()> {
    fs::create_dir(root)?;
    for package in all {
        let mut copy = Command::new("cp");
        copy.args(["-al", "--remove-destination"]).arg(package.unit.join("filesystem/."));
        good(copy.arg(root)).with_context(|| package.name.clone())?;
    }
    if !root.join("dev/null").exists() {
        fs::create_dir_all(root.join("dev"))?;
        good(Command::new("mknod").arg(root.join("dev/null")).args(["c", "1", "3"]))?;
    }
    let database = root.join("var/lib/dpkg");
    let info = database.join("info");
    fs::create_dir_all(&info)?;
    fs::write(info.join("format"), "1\n")?;
    let mut status = String::new();
    for package in all {
        let control_directory = package.unit.join("scripts/deb");
        let control = fs::read_to_string(control_directory.join("control"))?;
        status.push_str(control.trim_end());
        status.push_str("\nStatus: install ok installed\n\n");
        let field = |name: &str| {
            let line = control.lines().find_map(|line| line.strip_prefix(name));
            line.map(str::trim).unwrap_or_default()
        };
        let name = match field("Multi-Arch:") {
            "same" => format!("{}:{}", package.name, field("Architecture:")),
            _ => package.name.clone(),
        };
        let mut list = b"/.\n".to_vec();
        for entry in package.manifest.entries().iter().filter(|entry| !entry.path.is_empty()) {
            list.extend([b"/", entry.path.as_slice(), b"\n"].concat());
        }
        fs::write(info.join(format!("{name}.list")), list)?;
        for file in ["symbols", "shlibs"] {
            let from = control_directory.join(file);
            if from.exists() {
                fs::copy(from, info.join(format!("{name}.{file}")))?;
            }
        }
    }
    fs::write(database.join("status"), status)?;
    ensure!(root.join("usr/bin/dpkg-shlibdeps").exists(), "dpkg-dev is not among the packages");
    Ok(())
}

/// What dpkg-shlibdeps makes of a package that was just built.
fn theirs(root: &Path, package: &Package) -> Result<Found> {
    let source = root.join(SOURCE);
    let tree = source.join("debian").join(&package.name);
    fs::create_dir_all(&tree)?;
    good(Command::new("cp").arg("-al").arg(package.unit.join("filesystem/.")).arg(&tree))?;
    fs::create_dir(tree.join("DEBIAN"))?;
    for file in ["control", "symbols", "shlibs"] {
        let from = package.unit.join("scripts/deb").join(file);
        if from.exists() {
            fs::copy(from, tree.join("DEBIAN").join(file))?;
        }
    }
    let control = format!("Source: proof\n\nPackage: {}\nArchitecture: any\n", package.name);
    fs::write(source.join("debian/control"), control)?;
    let mut command = Command::new("chroot");
    command.arg(root).args(["sh", "-c", &format!("cd /{SOURCE} && exec dpkg-shlibdeps \"$@\"")]);
    command.args(["sh", "-O", "--warnings=0"]);
    for program in &package.programs {
        let mut argument = std::ffi::OsString::from("-e");
        argument.push(Path::new("debian").join(&package.name).join(program));
        command.arg(argument);
    }
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let output = command.env_clear().env("PATH", path).env("LC_ALL", "C").output()?;
    fs::remove_dir_all(&source)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        if !said.contains("dpkg-shlibdeps: error:") {
            bail!("dpkg-shlibdeps could not be run: {said}");
        }
        return Ok(Err(said.into_owned()));
    }
    let said = String::from_utf8_lossy(&output.stdout);
    let depends = said.lines().find_map(|line| line.strip_prefix("shlibs:Depends="));
    let mut found = parse(depends.unwrap_or_default())?;
    found.retain(|one| !one.alternatives.iter().any(|r| r.name.as_str() == package.name));
    Ok(Ok(found))
}

/// Where the two differ. dpkg-shlibdeps leaves it to dpkg-gencontrol to drop what
/// follows from another dependency.
fn difference(ours: &Found, theirs: &Found) -> Option<String> {
    let (ours, theirs) = match (ours, theirs) {
        (Err(_), Err(_)) => return None,
        (Err(error), Ok(_)) => return Some(format!("Strata: {error}")),
        (Ok(_), Err(error)) => return Some(format!("dpkg-shlibdeps: {error}")),
        (Ok(ours), Ok(theirs)) => (ours, theirs),
    };
    let known: BTreeSet<_> = theirs.iter().collect();
    let more: Vec<_> = ours.iter().filter(|one| !known.contains(one)).collect();
    let follows = |one: &&Dependency| !ours.iter().any(|of_us| implies(of_us, one));
    let less: Vec<_> = theirs.iter().filter(follows).collect();
    let side = |name, list: &[&Dependency]| {
        (!list.is_empty()).then(|| format!("only {name}: {}", print_list(list)))
    };
    let sides: Vec<_> =
        [side("Strata", &more), side("dpkg-shlibdeps", &less)].into_iter().flatten().collect();
    (!sides.is_empty()).then(|| sides.join("; "))
}

fn implies(a: &Dependency, b: &Dependency) -> bool {
    let single = |dependency: &Dependency| match dependency.alternatives.as_slice() {
        [Relation { name, constraint, .. }] => Some((name.clone(), constraint.clone())),
        _ => None,
    };
    if a == b {
        return true;
    }
    match (single(a), single(b)) {
        (Some((a, _)), Some((b, None))) => a == b,
        (
            Some((a, Some((Comparison::LaterOrEqual | Comparison::Exactly, at)))),
            Some((b, Some((Comparison::LaterOrEqual, least)))),
        ) => a == b && at.debian_cmp(&least).is_ge(),
        _ => false,
    }
}
