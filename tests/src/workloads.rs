//! Workloads that are programs of others, in any directory: a C build and Postmark, as the
//! paper measured them (§6.4). Each gives its seconds, without what it needs made before.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use crate::commands::run;

/// Where the C project comes from: libgit2 and zlib, as two crates carry them.
#[derive(Debug)]
pub struct Sources {
    pub libgit2: PathBuf,
    pub zlib: PathBuf,
}

const FEATURES: &str = "#define GIT_THREADS 1
#define GIT_TRACE 1
#define GIT_HTTPPARSER_BUILTIN 1
#define GIT_USE_NSEC 1
#define GIT_IO_POLL 1
#define GIT_IO_SELECT 1
#define GIT_USE_STAT_MTIM 1
#define GIT_ARCH_64 1
#define GIT_SHA1_COLLISIONDETECT 1
#define GIT_SHA256_BUILTIN 1
#define GIT_REGEX_REGCOMP 1
";

const MAKEFILE: &str = r#"G = libgit2
CFLAGS = -O1 -w -D_GNU_SOURCE -I$G/include -I$G/src/libgit2 -I$G/src/util -I$G/deps/llhttp -I$G/deps/xdiff -Izlib \
    -DSHA1DC_NO_STANDARD_INCLUDES=1 -DSHA1DC_CUSTOM_INCLUDE_SHA1_C='"common.h"' -DSHA1DC_CUSTOM_INCLUDE_UBC_CHECK_C='"common.h"'
PART = $(wildcard $G/src/util/*.c $G/deps/llhttp/*.c $G/deps/xdiff/*.c)
WHOLE = $(PART) $(wildcard $G/src/libgit2/*.c $G/src/util/unix/*.c $G/src/util/allocators/*.c \
    $G/src/libgit2/transports/*.c $G/src/libgit2/streams/*.c $G/src/util/hash/collisiondetect.c \
    $G/src/util/hash/builtin.c $G/src/util/hash/sha1dc/*.c $G/src/util/hash/rfc6234/*.c)
whole.a: $(WHOLE:.c=.o)
	ar rcs $@ $^
part.a: $(PART:.c=.o)
	ar rcs $@ $^
clean:
	find . -name '*.o' -delete
	rm -f whole.a part.a
"#;

impl Sources {
    /// Makes the project in a directory that is not there.
    ///
    /// # Errors
    /// The sources are not where they should be, or cannot be copied.
    pub fn project(&self, to: &Path) -> Result<()> {
        ensure!(self.libgit2.join("src/libgit2").is_dir(), "{:?} is not libgit2", self.libgit2);
        ensure!(self.zlib.join("zlib.h").is_file(), "{:?} is not zlib", self.zlib);
        fs::create_dir_all(to)?;
        for (from, name) in [(&self.libgit2, "libgit2"), (&self.zlib, "zlib")] {
            run(Command::new("cp").arg("-r").arg(from).arg(to.join(name)))?;
        }
        fs::write(to.join("libgit2/include/git2_features.h"), FEATURES)?;
        Ok(fs::write(to.join("Makefile"), MAKEFILE)?)
    }
}

/// Compiles the C project, or a part of it, with two jobs; its objects are removed again
/// untimed.
///
/// # Errors
/// It does not compile.
pub fn build(project: &Path, whole: bool) -> Result<f64> {
    let target = if whole { "whole.a" } else { "part.a" };
    let mut make = Command::new("make");
    make.args(["-s", "-j2", target]).current_dir(project).stdout(Stdio::null());
    let begin = Instant::now();
    run(&mut make)?;
    let seconds = begin.elapsed().as_secs_f64();
    run(Command::new("make").args(["-s", "clean"]).current_dir(project))?;
    Ok(seconds)
}

/// Postmark in a directory that it makes, with files of 512 bytes to 10 KB; what it leaves
/// is removed again untimed.
///
/// # Errors
/// It fails.
pub fn postmark(directory: &Path, files: usize, transactions: usize) -> Result<f64> {
    fs::create_dir_all(directory)?;
    let commands = format!(
        "set location .\nset size 512 10240\nset number {files}\nset transactions {transactions}\nrun\nquit\n"
    );
    // It has room for short names only.
    let mut child = Command::new("postmark")
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("postmark")?;
    let begin = Instant::now();
    let mut input = child.stdin.take().context("no pipe")?;
    input.write_all(commands.as_bytes())?;
    drop(input);
    let output = child.wait_with_output()?;
    let seconds = begin.elapsed().as_secs_f64();
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && said.contains("transactions"), "postmark failed: {said}");
    ensure!(!said.contains("Error"), "postmark: {said}");
    fs::remove_dir_all(directory)?;
    Ok(seconds)
}
