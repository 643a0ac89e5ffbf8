//! `strata-vlfs`: mount, ask and mend a virtual layered file system.

mod cli;

fn main() -> std::process::ExitCode {
    cli::run()
}
