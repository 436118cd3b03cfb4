//! `completions` and `man`: generated from the command tree, so they can't be out of date.

use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

use super::error::{CliError, CliResult, ExitCode};
use super::output::Output;

/// Arguments of `completions`.
#[derive(Args, Debug)]
pub(crate) struct CompletionsArgs {
    /// The shell to complete for
    shell: Shell,
}

/// Arguments of `man`.
#[derive(Args, Debug)]
pub(crate) struct ManArgs {
    /// Directory to write strongroom.1 and one page for each command into
    dir: PathBuf,
}

/// Prints the completion script.
pub(crate) fn run(args: &CompletionsArgs) -> CliResult {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), "strongroom", &mut script);
    let text = String::from_utf8(script).map_err(|e| CliError::new(ExitCode::Failure, e.to_string()))?;
    Output::new(false, false, 0).line(text.trim_end())?;
    Ok(ExitCode::Ok)
}

/// Writes the man pages.
pub(crate) fn run_man(args: &ManArgs, out: &Output) -> CliResult {
    std::fs::create_dir_all(&args.dir)
        .and_then(|()| clap_mangen::generate_to(super::command(), &args.dir))
        .map_err(|e| CliError::new(ExitCode::Io, format!("writing man pages to {}: {e}", args.dir.display())))?;
    out.note(&format!("man pages are in {}", args.dir.display()));
    Ok(ExitCode::Ok)
}
