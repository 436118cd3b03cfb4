//! Everything that is printed goes through here: text for people, JSON for programs, errors, progress bars.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::error::{CliError, CliResult, ExitCode};

/// How a command talks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    json: bool,
    quiet: bool,
    verbose: u8,
}

impl Output {
    pub(crate) fn new(json: bool, quiet: bool, verbose: u8) -> Self {
        Self { json, quiet, verbose }
    }

    /// Whether JSON was asked for.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// The log level that `-v` asks for.
    pub(crate) fn verbosity(&self) -> u8 {
        self.verbose
    }

    /// Writes a line of results to standard output.
    pub(crate) fn line(&self, text: &str) -> CliResult<()> {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).map_err(stdout_error)
    }

    /// Writes a remark to standard error, unless `--quiet` or `--json`.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet && !self.json {
            let mut err = std::io::stderr().lock();
            // A remark nobody can read any more is no reason to fail.
            drop(writeln!(err, "{text}"));
        }
    }

    /// Writes a warning to standard error, always.
    pub(crate) fn warning(&self, text: &str) {
        drop(writeln!(std::io::stderr().lock(), "warning: {text}"));
    }

    /// Writes `value` as JSON, in one line when `compact`.
    pub(crate) fn json(&self, value: &impl Serialize) -> CliResult<()> {
        let text = serde_json::to_string_pretty(value)
            .map_err(|e| CliError::new(ExitCode::Failure, format!("encoding JSON: {e}")))?;
        self.line(&text)
    }

    /// Writes `value` as one line of JSON, for streams.
    pub(crate) fn json_line(&self, value: &impl Serialize) -> CliResult<()> {
        let text = serde_json::to_string(value)
            .map_err(|e| CliError::new(ExitCode::Failure, format!("encoding JSON: {e}")))?;
        self.line(&text)
    }

    /// Reports a failed command on standard error, as JSON if that was asked for.
    pub(crate) fn error(&self, error: &CliError) {
        #[derive(Serialize)]
        struct Json<'a> {
            error: &'a str,
            hint: Option<&'a str>,
            exit_code: u8,
        }
        let mut err = std::io::stderr().lock();
        let written = if self.json {
            let json =
                Json { error: &error.message, hint: error.hint.as_deref(), exit_code: error.code as u8 };
            serde_json::to_string(&json)
                .map_err(std::io::Error::from)
                .and_then(|text| writeln!(err, "{text}"))
        } else {
            writeln!(err, "error: {}", error.message).and_then(|()| match &error.hint {
                Some(hint) => writeln!(err, "hint: {hint}"),
                None => Ok(()),
            })
        };
        // If standard error is gone the exit code still tells.
        drop(written);
    }

    /// Whether there is nobody to look at a bar.
    fn is_unseen(&self) -> bool {
        self.quiet || self.json || !std::io::stderr().is_terminal()
    }

    /// Several bars, one below the other; whatever is printed while they are there has to go through its `suspend`.
    pub(crate) fn bars(&self) -> MultiProgress {
        match self.is_unseen() {
            true => MultiProgress::with_draw_target(ProgressDrawTarget::hidden()),
            false => MultiProgress::new(),
        }
    }

    /// A bar over `total` bytes, drawn only on a terminal.
    pub(crate) fn progress(&self, total: Option<u64>, what: &str) -> ProgressBar {
        self.progress_among(&self.bars(), total, what)
    }

    /// As [`Output::progress`], one of several.
    pub(crate) fn progress_among(&self, bars: &MultiProgress, total: Option<u64>, what: &str) -> ProgressBar {
        if self.is_unseen() {
            return ProgressBar::hidden();
        }
        let (bar, template) = match total {
            Some(total) => (
                ProgressBar::new(total),
                "{prefix} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta} left {msg}",
            ),
            None => (ProgressBar::new_spinner(), "{prefix} {spinner} {bytes} {bytes_per_sec} {msg}"),
        };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = bars.add(bar);
        bar.set_style(style);
        bar.set_prefix(what.to_string());
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }
}

/// A closed pipe (`| head`) ends the program quietly; everything else is an error.
fn stdout_error(error: std::io::Error) -> CliError {
    if error.kind() == std::io::ErrorKind::BrokenPipe {
        std::process::exit(i32::from(ExitCode::Ok as u8));
    }
    CliError::new(ExitCode::Io, format!("writing to standard output: {error}"))
}

/// Bytes for people: three significant digits, binary units.
pub(crate) fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ if value < 10.0 => format!("{value:.2} {}", UNITS[unit]),
        _ if value < 100.0 => format!("{value:.1} {}", UNITS[unit]),
        _ => format!("{value:.0} {}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::human_bytes;

    #[test]
    fn bytes_read_well() {
        let shown: Vec<String> =
            [0, 1023, 1024, 1536, 10 << 20, 5_000_000_000, u64::MAX].into_iter().map(human_bytes).collect();
        assert_eq!(shown, ["0 B", "1023 B", "1.00 KiB", "1.50 KiB", "10.0 MiB", "4.66 GiB", "16.0 EiB"]);
    }
}
