//! `strata layer infer` and `strata layer build --infer-depends`, against
//! dpkg-shlibdeps on libraries and programs that are compiled here. Needs gcc and
//! `dpkg-shlibdeps` (Debian's dpkg-dev).

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::{Bench, text};

/// Where Debian has the libraries of this machine.
fn libraries() -> String {
    let output = Command::new("gcc").arg("-print-multiarch").output();
    let output = output.expect("gcc is needed: apt-get install gcc libc6-dev");
    format!("usr/lib/{}", String::from_utf8(output.stdout).expect("UTF-8").trim())
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("it is needed: apt-get install gcc dpkg-dev");
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn write(path: &Path, content: &str) {
    fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
    fs::write(path, content).expect("written");
}

/// Trees of packages below `debian/`, as dpkg-shlibdeps wants them.
struct Trees<'b> {
    bench: &'b Bench,
}

impl Trees<'_> {
    fn source(&self) -> PathBuf {
        self.bench.path("source")
    }

    fn tree(&self, package: &str) -> PathBuf {
        self.source().join("debian").join(package)
    }

    fn control(&self, package: &str, version: &str) {
        let text = format!(
            "Package: {package}\nVersion: {version}\nArchitecture: all\nMaintainer: A <a@example.org>\nDescription: a package\n"
        );
        write(&self.tree(package).join("DEBIAN/control"), &text);
    }

    /// A library of these functions, each with its version.
    fn library(&self, package: &str, soname: &str, functions: &[(&str, &str)]) {
        let code: String =
            functions.iter().map(|(f, _)| format!("int {f}(void){{return 1;}}\n")).collect();
        let script: String = functions
            .iter()
            .map(|(f, version)| format!("{version} {{ global: {f}; }};\n"))
            .collect();
        let (c, map) = (self.source().join("library.c"), self.source().join("library.map"));
        write(&c, &code);
        write(&map, &script);
        let place = self.tree(package).join(libraries());
        fs::create_dir_all(&place).expect("directories");
        let mut gcc = Command::new("gcc");
        gcc.args(["-shared", "-fPIC", "-nostdlib", "-o"]).arg(place.join(soname)).arg(&c);
        gcc.arg(format!("-Wl,-soname,{soname}"));
        gcc.arg(format!("-Wl,--version-script,{}", text(&map)));
        run(&mut gcc);
    }

    /// A program that calls these functions of these libraries.
    fn program(&self, path: &str, calls: &[&str], libraries: &[PathBuf], options: &[&str]) {
        let declared: String = calls.iter().map(|call| format!("int {call}(void);\n")).collect();
        let sum = calls.iter().map(|call| format!("{call}()")).collect::<Vec<_>>().join("+");
        let c = self.source().join("program.c");
        write(&c, &format!("{declared}int main(void){{return {sum};}}\n"));
        let place = self.tree("program").join(path);
        fs::create_dir_all(place.parent().expect("a parent")).expect("directories");
        let mut gcc = Command::new("gcc");
        gcc.arg("-o").arg(place).arg(&c).args(libraries).args(options);
        run(&mut gcc);
    }

    fn import(&self, package: &str) {
        let deb = self.bench.path(&format!("{package}.deb"));
        let mut build = Command::new("dpkg-deb");
        build.args(["-Zgzip", "-z1", "--root-owner-group", "--build"]);
        run(build.arg(self.tree(package)).arg(&deb));
        self.bench.good(&["layer", "import", text(&deb)]);
    }

    /// What dpkg-shlibdeps makes of the program, each dependency once.
    fn of_dpkg(&self, paths: &[&str]) -> BTreeSet<String> {
        write(
            &self.source().join("debian/control"),
            "Source: source\nMaintainer: A <a@example.org>\n\nPackage: program\nArchitecture: any\nDescription: a package\n",
        );
        let mut dpkg = Command::new("dpkg-shlibdeps");
        dpkg.arg("-O").current_dir(self.source());
        for path in paths {
            dpkg.arg(format!("-edebian/program/{path}"));
        }
        let said = run(&mut dpkg);
        let said = said.trim().strip_prefix("shlibs:Depends=").expect("dependencies");
        said.split(", ").map(str::to_owned).collect()
    }
}

/// This machine's libc6, with what it says of its library and nothing else.
fn import_libc(trees: &Trees<'_>) {
    let version = run(Command::new("dpkg-query").args(["-W", "-f", "${Version}\n", "libc6"]));
    trees.control("libc6", version.lines().next().expect("libc6 is installed"));
    let of = |name: &str| run(Command::new("dpkg-query").args(["--control-show", "libc6", name]));
    for name in ["symbols", "shlibs"] {
        write(&trees.tree("libc6").join("DEBIAN").join(name), &of(name));
    }
    trees.import("libc6");
    // dpkg-shlibdeps must look at the installed one.
    fs::remove_dir_all(trees.tree("libc6")).expect("removed");
}

#[test]
fn libraries_are_found_as_dpkg_shlibdeps_finds_them() {
    let bench = Bench::set_up();
    let trees = Trees { bench: &bench };
    let lib = libraries();
    // Versions of symbols, another dependency for private ones, and a library with shlibs only.
    trees.control("libnew2", "2.5");
    trees.library(
        "libnew2",
        "libnew.so.2",
        &[("new_a", "N_1"), ("new_b", "N_2"), ("new_p", "N_P")],
    );
    let symbols = "libnew.so.2 libnew2 #MINVER#\n| libnew2 (>> 2.4), libnew2 (<< 2.6)\n* Build-Depends-Package: libnew-dev\n N_1@N_1 1.0\n N_2@N_2 2.0~rc1\n N_P@N_P 0 1\n new_a@N_1 1.0\n new_b@N_2 2.0~rc1\n new_p@N_P 0 1\n";
    write(&trees.tree("libnew2").join("DEBIAN/symbols"), symbols);
    write(&trees.tree("libnew2").join("DEBIAN/shlibs"), "libnew 2 wrong\n");
    trees.control("libold1", "1:1-1");
    trees.library("libold1", "libold.so.1", &[("old", "O_1")]);
    let shlibs = "udeb: libold 1 libold1-udeb\nlibold\t1 libold1 (>= 1:1), libold-data | nothing\n";
    write(&trees.tree("libold1").join("DEBIAN/shlibs"), shlibs);
    trees.control("libzero0", "0.1");
    trees.library("libzero0", "libzero-0.1.so", &[("zero", "Z")]);
    let symbols = "libzero-0.1.so libzero0 #MINVER#\n Z@Z 0\n zero@Z 0\n";
    write(&trees.tree("libzero0").join("DEBIAN/symbols"), symbols);
    let (new, old, zero) = (
        trees.tree("libnew2").join(&lib).join("libnew.so.2"),
        trees.tree("libold1").join(&lib).join("libold.so.1"),
        trees.tree("libzero0").join(&lib).join("libzero-0.1.so"),
    );
    trees.control("program", "1");
    trees.library("program", "libprivate.so.7", &[("private", "P")]);
    let private = trees.tree("program").join(&lib).join("libprivate.so.7");
    let own = trees.tree("program").join("usr/lib/program");
    fs::create_dir_all(&own).expect("directories");
    fs::rename(&private, own.join("libprivate.so.7")).expect("moved");
    let private = own.join("libprivate.so.7");
    trees.program("usr/bin/a", &["new_a"], std::slice::from_ref(&new), &[]);
    trees.program("usr/bin/b", &["new_b", "old"], &[new.clone(), old], &[]);
    trees.program("usr/bin/p", &["new_p"], std::slice::from_ref(&new), &[]);
    trees.program("usr/bin/z", &["zero"], &[zero], &[]);
    trees.program("usr/bin/unused", &[], &[new], &["-Wl,--no-as-needed", "-DX", "-w"]);
    let runpath = ["-Wl,-rpath,$ORIGIN/../lib/program"];
    trees.program("usr/bin/own", &["private"], &[private], &runpath);
    import_libc(&trees);
    for package in ["libnew2", "libold1", "libzero0"] {
        trees.import(package);
    }
    for programs in [
        &["usr/bin/a"][..],
        &["usr/bin/b"],
        &["usr/bin/p"],
        &["usr/bin/z"],
        &["usr/bin/own"],
        &["usr/bin/a", "usr/bin/b", "usr/bin/p", "usr/bin/z", "usr/bin/own"],
    ] {
        let root = bench.path("root");
        for program in programs {
            let to = root.join(program);
            fs::create_dir_all(to.parent().expect("a parent")).expect("directories");
            fs::copy(trees.tree("program").join(program), to).expect("copied");
        }
        let library = root.join("usr/lib/program");
        fs::create_dir_all(&library).expect("directories");
        fs::copy(own.join("libprivate.so.7"), library.join("libprivate.so.7")).expect("copied");
        let said = bench.good(&["layer", "infer", "--root", text(&root), "--output", "json"]);
        let said: Value = serde_json::from_str(&said).expect("JSON");
        let found = said["dependencies"].as_array().expect("a list").iter();
        let found: BTreeSet<_> =
            found.map(|one| one["dependency"].as_str().expect("text").to_owned()).collect();
        assert_eq!(found, trees.of_dpkg(programs), "{programs:?}: {said:#}");
        fs::remove_dir_all(&root).expect("removed");
    }
}

fn executable(path: &Path, content: &str) {
    write(path, content);
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("a mode");
}

#[test]
fn scripts_depend_on_their_interpreters_and_what_is_missing_is_refused() {
    let bench = Bench::set_up();
    let trees = Trees { bench: &bench };
    for (package, essential, program) in [
        ("shell", true, "bin/sh"),
        ("snake", false, "usr/bin/snake"),
        ("tools", true, "usr/bin/env"),
    ] {
        trees.control(package, "1");
        if essential {
            let control = trees.tree(package).join("DEBIAN/control");
            let text = fs::read_to_string(&control).expect("read") + "Essential: yes\n";
            fs::write(control, text).expect("written");
        }
        executable(&trees.tree(package).join(program), "");
        trees.import(package);
    }
    let root = bench.path("root");
    executable(&root.join("usr/bin/one"), "#!/bin/sh\n");
    executable(&root.join("usr/bin/two"), "#!/usr/bin/env snake\n");
    executable(&root.join("usr/bin/three"), "#!/usr/bin/four -x\n");
    executable(&root.join("usr/bin/four"), "#!/usr/bin/snake\n");
    executable(&root.join("usr/share/doc/x/example"), "#!/usr/bin/nothing\n");
    write(&root.join("usr/share/template"), "#!/usr/bin/nothing\n");
    let build = |options: &[&str]| {
        let head = ["layer", "build", "--name", "x", "--version", "1", "--root", text(&root)];
        let all = head.into_iter().chain(["--infer-depends"]).chain(options.iter().copied());
        all.map(str::to_owned).collect::<Vec<_>>()
    };
    fn borrowed(all: &[String]) -> Vec<&str> {
        all.iter().map(String::as_str).collect()
    }
    // Essential layers of the same repository are always there; those of another are not.
    bench.good(&borrowed(&build(&["--depends", "snake (>= 0.5), other"])));
    let shown = bench.good(&["layer", "show", "main/x"]);
    assert!(shown.contains("Depends: snake (>= 0.5), other\n"), "{shown}");
    bench.good(&borrowed(&build(&["--repo", "local"])));
    let shown = bench.good(&["layer", "show", "local/x"]);
    assert!(shown.contains("Depends: shell, snake, tools\n"), "{shown}");
    let said = bench.good(&["layer", "infer", "main/x"]);
    assert_eq!(said, "Depends: snake\n  snake  /usr/bin/four is run by /usr/bin/snake\n");
    executable(&root.join("usr/bin/lost"), "#!/usr/bin/nothing\n");
    let refused = bench.bad(&borrowed(&build(&[])));
    assert!(
        refused.contains("/usr/bin/lost is run by /usr/bin/nothing, which no layer here has")
            && refused.contains(
                "hint: import the layer that has it; or allow it: --ignore-missing /usr/bin/nothing"
            ),
        "{refused}"
    );
    let lost = bench.strata(&["layer", "infer", "--root", text(&root)]);
    assert_eq!(lost.status.code(), Some(1), "{lost:?}");
    let lost = String::from_utf8(lost.stdout).expect("UTF-8");
    assert!(lost.contains("missing: /usr/bin/lost is run by /usr/bin/nothing"), "{lost}");
    let ignored = build(&["--repo", "other", "--ignore-missing", "/usr/bin/nothing"]);
    bench.good(&borrowed(&ignored));
}

#[test]
fn a_library_of_a_layer_without_control_files_is_a_dependency_on_its_version() {
    let bench = Bench::set_up();
    let trees = Trees { bench: &bench };
    trees.library("libown", "libown.so.3", &[("own", "O")]);
    let library = trees.tree("libown");
    let head = ["layer", "build", "--name", "libown", "--version", "3.1", "--root", text(&library)];
    bench.good(&head);
    let so = library.join(libraries()).join("libown.so.3");
    trees.program("usr/bin/x", &["own"], &[so], &[]);
    let root = trees.tree("program");
    let output = bench.strata(&["layer", "infer", "--root", text(&root)]);
    let said = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(said.starts_with("Depends: libown (>= 3.1)\n"), "{said}");
    assert!(said.contains("missing: /usr/bin/x needs libc.so.6"), "{said}");
    assert_eq!(output.status.code(), Some(1));
}
