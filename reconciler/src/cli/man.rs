//! `strata man`: manual pages, made of what `--help` says.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_mangen::Man;

use super::{Cli, Failure, Outcome, print_bytes, quantity};

/// Write the manual pages of all commands into a directory
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata man /usr/local/share/man/man1
  strata man target/man && man target/man/strata-status.1")]
pub struct ManArgs {
    /// Made where it is not there.
    directory: PathBuf,
}

/// # Errors
/// The directory or a page cannot be written.
pub fn run(args: &ManArgs) -> Result<Outcome, Failure> {
    let written = |error: std::io::Error| {
        Failure::new(format!("write manual pages into {}: {error}", args.directory.display()))
    };
    std::fs::create_dir_all(&args.directory).map_err(written)?;
    let pages = pages().map_err(written)?;
    for (name, page) in &pages {
        std::fs::write(args.directory.join(name), page).map_err(written)?;
    }
    let text =
        format!("{} in {}\n", quantity(pages.len(), "manual page"), args.directory.display());
    print_bytes(text.as_bytes())?;
    Ok(Outcome::Done)
}

/// A page for each command, by file name.
fn pages() -> std::io::Result<Vec<(String, Vec<u8>)>> {
    let mut root = Cli::command().disable_help_subcommand(true);
    root.build();
    let mut pages = Vec::new();
    let mut open = vec![(root.get_name().to_owned(), root)];
    while let Some((name, command)) = open.pop() {
        for below in command.get_subcommands() {
            open.push((format!("{name}-{}", below.get_name()), below.clone()));
        }
        let mut page = Vec::new();
        let usage_name = name.replace('-', " ");
        Man::new(command.bin_name(usage_name)).title(name.to_uppercase()).render(&mut page)?;
        pages.push((format!("{name}.1"), page));
    }
    pages.sort();
    Ok(pages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_with_its_example() {
        let pages = pages().expect("rendered");
        assert!(pages.len() > 40, "{}", pages.len());
        for (name, page) in &pages {
            let page = String::from_utf8(page.clone()).expect("UTF-8");
            assert!(page.contains(".SH NAME") && page.contains(".SH SYNOPSIS"), "{name}");
            // Those with commands below them list these instead.
            assert!(page.contains("Example") || page.contains(".SH SUBCOMMANDS"), "{name}");
        }
        let (_, page) =
            pages.iter().find(|(name, _)| name == "strata-rollout-pause.1").expect("a page");
        let page = String::from_utf8_lossy(page);
        assert!(page.contains("strata rollout pause") && page.contains("\\-\\-reason"), "{page}");
    }
}
