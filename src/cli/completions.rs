//! What is made of the command line's own description: completions for shells, and manual pages.

use std::fs;
use std::path::PathBuf;

use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::Shell;

use super::terminal::print;
use super::{Cli, Exit, complain};

const HELP: &str = "\
Examples:
  smcached completions bash >/usr/share/bash-completion/completions/smcached
  smcached completions zsh >/usr/local/share/zsh/site-functions/_smcached
  smcached completions fish >~/.config/fish/completions/smcached.fish
  source <(smcached completions bash)    # for this shell only

Exit codes:
  0  printed
  1  it cannot be written
  2  the command line is wrong";

/// Print what makes a shell complete the commands and options of smcached.
#[derive(Debug, Args)]
#[command(after_long_help = HELP)]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum, value_name = "SHELL")]
    shell: KnownShell,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum KnownShell {
    Bash,
    Zsh,
    Fish,
}

pub(super) fn run(args: &CompletionsArgs) -> Exit {
    let shell = match args.shell {
        KnownShell::Bash => Shell::Bash,
        KnownShell::Zsh => Shell::Zsh,
        KnownShell::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), env!("CARGO_PKG_NAME"), &mut script);
    print(&script).err().unwrap_or(Exit::Success)
}

/// Write manual pages, for packages: smcached.1 and one for each command.
#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// Where they are put; made if it is missing
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

pub(super) fn man(args: &ManArgs) -> Exit {
    let written =
        fs::create_dir_all(&args.dir).and_then(|()| clap_mangen::generate_to(Cli::command(), &args.dir));
    match written {
        Ok(()) => Exit::Success,
        Err(error) => {
            complain(&format!("cannot write manual pages to {}: {error}", args.dir.display()));
            Exit::Failure
        }
    }
}
