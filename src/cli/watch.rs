//! `ship --watch`: keeps running, and ships what appears. In the foreground; systemd or a shell looks after it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::error::{CliError, CliResult, ExitCode};
use super::output::Output;
use super::session;
use super::ship::{ShipArgs, available_memory, jobs, note, open_options, summary, warn};
use crate::env::SystemEnv;
use crate::remote::{self, RetryPolicy};
use crate::ship::{self, Event, Opened, Report, Stop, Watching};

/// What closes in so short a time is one round: a job that writes closes a pack every few seconds.
const QUIET: Duration = Duration::from_secs(2);
/// A round begins at the latest this long after something has appeared.
const LONGEST: Duration = Duration::from_secs(15);

/// One line of `--json`.
#[derive(Default, Serialize)]
struct Line<'a> {
    event: &'static str,
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remote: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<&'a str>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    report: Option<&'a Report>,
    #[serde(skip_serializing_if = "Option::is_none")]
    requests: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<u8>,
}

/// Trouble passes, or the next round tries again: waiting long inside of one would only hide it.
const RETRY: RetryPolicy = RetryPolicy {
    tries_max: 6,
    first: Duration::from_millis(500),
    pause_max: Duration::from_secs(20),
    total_max: Duration::from_secs(90),
};

/// Runs until a signal ends it.
pub(super) fn run(args: &ShipArgs, out: &Output) -> CliResult {
    let stop = Arc::new(Stop::new()?);
    end_at_signals(&stop)?;
    let (settings, vault) = (args.clone(), session::absolute(&args.vault));
    let open = move |remote: &remote::Settings, counters: Arc<remote::Counters>, stop: &Arc<Stop>| {
        let pause = Arc::clone(stop) as Arc<dyn remote::Pause>;
        let options = remote::OpenOptions { retry: Some(RETRY), pause, ..open_options(&settings, &counters) };
        Ok(Opened {
            jobs: jobs(&settings, remote, &counters, available_memory())?,
            remote: remote::open(remote, &options)?,
        })
    };
    let interval = args.interval.max(Duration::from_secs(1));
    let (talk, said) = (*out, Mutex::new(BTreeMap::new()));
    let watching = Watching {
        only: args.to.iter().cloned().collect(),
        interval,
        quiet: QUIET.min(interval),
        longest: LONGEST,
        env: Arc::new(SystemEnv),
        open: Box::new(open),
        note: note("ship --watch"),
        tell: Box::new(move |event| tell(&talk, &said, event)),
    };
    out.note("shipping what appears; Ctrl-C ends it");
    ship::watch(&vault, watching, &stop)?;
    Ok(ExitCode::Ok)
}

/// The first signal lets objects under way be finished, a second one doesn't.
fn end_at_signals(stop: &Arc<Stop>) -> CliResult<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let stop = Arc::clone(stop);
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for _ in signals.forever() {
            if stop.is_asked() {
                stop.abandon();
            }
            stop.finish();
        }
    })?;
    Ok(())
}

/// What is wrong although shipping works, as it was said last for each remote: it is said again when it changes.
type Said = Mutex<BTreeMap<String, String>>;

fn tell(out: &Output, said: &Said, event: Event<'_>) {
    if let Err(error) = try_to_tell(out, said, event) {
        // Standard output is gone: shipping goes on without it.
        tracing::warn!(error = %error.message, "nobody listens");
    }
}

fn try_to_tell(out: &Output, said: &Said, event: Event<'_>) -> CliResult<()> {
    let line = |event| Line { event, time: session::rfc3339_now(), ..Line::default() };
    let failed = |name: Option<&str>, error: ship::ShipError| {
        let error = CliError::from(error);
        match name {
            Some(name) => error.context(name),
            None => error,
        }
    };
    match event {
        Event::Shipped { name, url, report, requests, time, recovered } => {
            let seconds = time.as_secs_f64();
            if out.is_json() {
                let (remote, url) = (Some(name), Some(url));
                let (report, requests, seconds) = (Some(report), Some(requests), Some(seconds));
                out.json_line(&Line { remote, url, report, requests, seconds, ..line("shipped") })?;
            } else if report.packs + report.chain_files + report.headers > 0 || recovered {
                out.line(&summary(name, report, requests, seconds))?;
            }
            warn_once(out, said, name, report);
        }
        Event::Unfinished { name, url, report, requests, time } => {
            let seconds = time.as_secs_f64();
            let is_new = warn_once(out, said, name, report);
            let has_sent = report.packs + report.chain_files + report.headers > 0;
            if out.is_json() && (is_new || has_sent) {
                let (remote, url) = (Some(name), Some(url));
                let (report, requests, seconds) = (Some(report), Some(requests), Some(seconds));
                out.json_line(&Line { remote, url, report, requests, seconds, ..line("unfinished") })?;
            } else if has_sent {
                out.line(&format!("until it failed, {}", summary(name, report, requests, seconds)))?;
            }
        }
        Event::Failing { name, url, error } => {
            let error = failed(Some(name), error);
            if out.is_json() {
                let (text, hint) = (Some(error.message), error.hint);
                let exit_code = Some(error.code as u8);
                let (remote, url) = (Some(name), Some(url));
                out.json_line(&Line { remote, url, error: text, hint, exit_code, ..line("failing") })?;
            } else {
                say(out, &error, "tried again until it works");
            }
        }
        Event::VaultAway { error } => {
            let error = failed(None, error);
            if out.is_json() {
                let (text, exit_code) = (Some(error.message), Some(error.code as u8));
                out.json_line(&Line { error: text, exit_code, ..line("vault-away") })?;
            } else {
                say(out, &error, "waiting for the vault to come back");
            }
        }
        Event::VaultBack if out.is_json() => out.json_line(&line("vault-back"))?,
        Event::VaultBack => out.note("the vault is there again"),
        Event::Added { name } if out.is_json() => {
            out.json_line(&Line { remote: Some(name), ..line("added") })?;
        }
        Event::Added { name } => out.note(&format!("{name} is shipped to from now on")),
        Event::Removed { name } if out.is_json() => {
            out.json_line(&Line { remote: Some(name), ..line("removed") })?;
        }
        Event::Removed { name } => out.note(&format!("{name} is not shipped to any more")),
    }
    Ok(())
}

/// Says what is wrong although something was shipped, if it is not what was said last. Tells whether it was said.
fn warn_once(out: &Output, said: &Said, name: &str, report: &Report) -> bool {
    let wrong = alarms(report);
    let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
    if said.get(name) == Some(&wrong) {
        return false;
    }
    // There is no status to end with: what is wrong was said.
    let _: ExitCode = warn(report, out);
    said.insert(name.to_string(), wrong);
    true
}

/// Tells one set of alarms from another: by names, since one may go while another comes.
fn alarms(report: &Report) -> String {
    let locks = report.lock.as_ref().map(|lock| {
        let (hidden, overwritten) =
            ((&lock.hidden, lock.hidden_total), (&lock.overwritten, lock.overwritten_total));
        (lock.refused, hidden, overwritten, (&lock.gone, lock.gone_total))
    });
    let foreign = (&report.foreign_names, report.foreign, report.unjudged);
    let there = (&report.damaged_there_names, report.damaged_there);
    let there = (there, &report.gone_there_names, report.gone_there);
    format!("{:?}", (&report.damaged, there, foreign, report.header_refused, locks))
}

/// Trouble in one line, with what to do about it.
fn say(out: &Output, error: &CliError, then: &str) {
    let hint = error.hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
    out.warning(&super::show_bytes(format!("{}{hint}; {then}", error.message).as_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::LockMode;
    use crate::ship::LockReport;

    #[test]
    fn an_alarm_that_goes_while_another_comes_is_another_one() {
        let lock = |hidden: &str| LockReport {
            mode: LockMode::Governance,
            days: 30,
            objects: 2,
            until: None,
            extended: 0,
            asked: 0,
            refused: 0,
            hidden: vec![hidden.into()],
            hidden_total: 1,
            overwritten: Vec::new(),
            overwritten_total: 0,
            gone: Vec::new(),
            gone_total: 0,
        };
        let report = |hidden: &str, foreign: &str| Report {
            lock: Some(lock(hidden)),
            foreign: 1,
            foreign_names: vec![foreign.into()],
            packs: 3,
            ..Report::default()
        };
        let first = alarms(&report("packs/aa/1", "x"));
        assert_ne!(first, alarms(&report("packs/aa/2", "x")));
        assert_ne!(first, alarms(&report("packs/aa/1", "y")));
        assert_eq!(
            first,
            alarms(&Report { packs: 0, bytes: 7, ..report("packs/aa/1", "x") }),
            "what was sent is no alarm"
        );
    }
}
