//! RPM packages made for a test, by rpmbuild. Needs `rpm`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::finish;

/// Programs of the host with the libraries that they need, below `root`, which is one
/// with a merged /usr.
///
/// # Panics
/// One is not there, or cannot be copied.
pub fn copy_programs(root: &Path, names: &[&str]) {
    for name in names {
        let program = Path::new("/usr/bin").join(name);
        let mut files = vec![program.clone()];
        let needs = finish(Command::new("ldd").arg(&program)).ok();
        files.extend(
            needs.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from),
        );
        for file in files {
            let below = file.strip_prefix("/").expect("absolute");
            let below = below.strip_prefix("usr").unwrap_or(below);
            let target = root.join("usr").join(below);
            fs::create_dir_all(target.parent().expect("a parent")).expect("made");
            fs::copy(&file, target).expect("copied");
        }
    }
}

/// A spec; `install` and `files` are its parts of these names, the latter with scriptlets
/// before it.
pub fn spec(head: &str, install: &str, files: &str) -> String {
    format!(
        "Summary: A part of a small system\nLicense: MIT\n{head}\n%description\nIt.\n%prep\n%build\n%install\n{install}\n{files}\n"
    )
}

/// Builds packages of these specs (by name) below `top`; the directory that they are in.
///
/// # Panics
/// rpmbuild is not there or refuses one.
pub fn build<S: AsRef<str>>(top: &Path, specs: &[(&str, S)]) -> PathBuf {
    fs::create_dir_all(top).expect("made");
    for (name, spec) in specs {
        let file = top.join(format!("{name}.spec"));
        fs::write(&file, spec.as_ref()).expect("written");
        let mut rpmbuild = Command::new("rpmbuild");
        rpmbuild.args(["-bb", "--quiet", "--target", "x86_64-linux"]);
        for define in [
            "debug_package %{nil}",
            "_build_id_links none",
            "__strip /bin/true",
            "__os_install_post %{nil}",
        ] {
            rpmbuild.args(["--define", define]);
        }
        finish(rpmbuild.arg("--define").arg(format!("_topdir {}", top.display())).arg(file)).ok();
    }
    top.join("RPMS/x86_64")
}
