//! What a status says to a person, in words: the same for a browser and for a terminal.

use std::time::Duration;

use super::status::{Breaker, Group, Place, State, Status};
use crate::units::{show_roughly, show_size_roughly};

/// A failure that is older than this is history.
const RECENT: u64 = 300;

/// How much something should worry its reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Not at all.
    Good,
    /// It is worth a look.
    Warning,
    /// Readers notice.
    Bad,
}

/// A status in words.
#[derive(Debug)]
pub struct Report {
    /// How things stand, in one line.
    pub verdict: Row,
    /// The rest, by subject.
    pub sections: Vec<Section>,
}

/// What is said of one subject.
#[derive(Debug)]
pub struct Section {
    /// The subject.
    pub title: &'static str,
    /// What is said; never nothing.
    pub rows: Vec<Row>,
}

/// A name, and what is said of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Row {
    /// The name.
    pub name: String,
    /// How good that is.
    pub level: Level,
    /// What is said.
    pub text: String,
}

impl Row {
    fn new(name: impl Into<String>, level: Level, text: impl Into<String>) -> Self {
        Self { name: name.into(), level, text: text.into() }
    }

    fn good(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self::new(name, Level::Good, text)
    }
}

impl Report {
    /// Puts a status into words.
    pub fn of(status: &Status) -> Self {
        let sections = [
            ("Daemon", daemon(status)),
            ("Source", source(status)),
            ("Regions and roles", status.upstream.places.iter().map(place).collect()),
            ("Held", held(status)),
            ("Groups", status.groups.iter().map(|(name, of)| group(name, of)).collect()),
            ("Listeners", listeners(status)),
        ];
        let sections = sections.into_iter().filter(|(_, rows)| !rows.is_empty());
        Self {
            verdict: verdict(status),
            sections: sections.map(|(title, rows)| Section { title, rows }).collect(),
        }
    }
}

fn verdict(status: &Status) -> Row {
    let stale = status.cache.stale_entries;
    let (level, text) = if let Some(reasons) = status.reasons() {
        (Level::Bad, format!("not ready: {reasons}"))
    } else if status.upstream.state == State::Failing {
        let trouble = "ready, but the source fails: what is held is served on, reads of other secrets fail";
        (Level::Warning, trouble.to_owned())
    } else if status.upstream.places.iter().any(|place| place.breaker == Breaker::Open) {
        (Level::Warning, "ready, but a region or role does not answer".to_owned())
    } else if is_slowed(status) {
        (Level::Warning, "ready, but AWS throttled calls a short while ago".to_owned())
    } else if stale > 0 {
        (Level::Warning, format!("ready, with {} past their ttl", count(stale, "secret")))
    } else {
        (Level::Good, "ready".to_owned())
    };
    Row::new("smcached", level, text)
}

fn is_slowed(status: &Status) -> bool {
    let error = status.upstream.last_error.as_ref();
    error.is_some_and(|error| error.kind == "throttled" && error.seconds_ago < RECENT)
}

fn daemon(status: &Status) -> Vec<Row> {
    vec![Row::good("version", status.version.clone()), Row::good("up for", span(status.uptime_seconds))]
}

fn source(status: &Status) -> Vec<Row> {
    let upstream = &status.upstream;
    let failures = usize::try_from(upstream.consecutive_failures).unwrap_or(usize::MAX);
    let (level, state) = match upstream.state {
        State::Unknown => (Level::Good, "not asked yet".to_owned()),
        State::Answering => (Level::Good, "answers".to_owned()),
        State::Failing => (Level::Warning, format!("fails; {} in a row", count(failures, "failure"))),
    };
    let answer = upstream.last_answer_seconds_ago.map_or_else(|| "never".to_owned(), ago);
    let mut rows = vec![
        Row::good("kind", upstream.source.clone()),
        Row::new("state", level, state),
        Row::good("last answer", answer),
        Row::good("calls allowed", format!("{} a second", rate(upstream.rate_limit))),
    ];
    if let Some(error) = &upstream.last_error {
        let level = match upstream.state {
            State::Failing => Level::Warning,
            _ => Level::Good,
        };
        let text = format!("{}: {} ({})", ago(error.seconds_ago), error.message, error.kind);
        rows.push(Row::new("last error", level, text));
    }
    rows
}

fn place(place: &Place) -> Row {
    let name = |part: &Option<_>, default: &str| part.as_deref().unwrap_or(default).to_owned();
    let role = name(&place.role_arn, "own role");
    let name = format!("{}, {role}", name(&place.region, "default region"));
    match (place.breaker, place.batches) {
        (Breaker::Open, _) => Row::new(name, Level::Warning, "does not answer; only probed"),
        (Breaker::Closed, true) => Row::good(name, "asked; refreshes share calls"),
        (Breaker::Closed, false) => Row::good(name, "asked; a call for each refresh"),
    }
}

fn held(status: &Status) -> Vec<Row> {
    let cache = &status.cache;
    let percent = (cache.bytes * 100).checked_div(cache.max_bytes).unwrap_or(0);
    let (bytes, most) = (show_size_roughly(cache.bytes), show_size_roughly(cache.max_bytes));
    vec![
        freshness("secrets", cache.entries, cache.stale_entries, cache.oldest_entry_age_seconds),
        Row::good("memory", format!("{bytes} of {most} ({percent} %)")),
    ]
}

fn group(name: &str, group: &Group) -> Row {
    freshness(name, group.entries, group.stale_entries, group.oldest_entry_age_seconds)
}

fn freshness(name: &str, entries: usize, stale: usize, oldest: u64) -> Row {
    match (entries, stale) {
        (0, _) => Row::good(name, "none"),
        (_, 0) => Row::good(name, format!("{entries}, all fresh; the oldest fetched {}", ago(oldest))),
        _ => {
            let part = if stale == entries { "all".to_owned() } else { stale.to_string() };
            let text = format!("{entries}, {part} past their ttl; the oldest fetched {}", ago(oldest));
            Row::new(name, Level::Warning, text)
        }
    }
}

fn listeners(status: &Status) -> Vec<Row> {
    let open = |connections: i64| count(usize::try_from(connections).unwrap_or(0), "open connection");
    status.listeners.iter().map(|(label, listener)| Row::good(label, open(listener.connections))).collect()
}

/// To one decimal place where that matters.
fn rate(a_second: f64) -> String {
    if a_second < 10.0 { format!("{a_second:.1}") } else { format!("{a_second:.0}") }
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn ago(seconds: u64) -> String {
    if seconds == 0 { "just now".to_owned() } else { format!("{} ago", span(seconds)) }
}

fn span(seconds: u64) -> String {
    show_roughly(Duration::from_secs(seconds))
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    /// A status as a daemon writes it.
    pub(in crate::ops) fn status(change: impl FnOnce(&mut serde_json::Value)) -> Status {
        let mut status = json!({
            "version": "1.2.3", "uptime_seconds": 4000, "ready": true, "not_ready_because": [],
            "upstream": {
                "source": "aws", "state": "answering", "consecutive_failures": 0,
                "last_answer_seconds_ago": 3, "last_error": null, "rate_limit": 50.0,
                "places": [{ "region": null, "role_arn": null, "breaker": "closed", "batches": true }],
            },
            "cache": {
                "entries": 3, "stale_entries": 0, "bytes": 1024, "max_bytes": 4096,
                "oldest_entry_age_seconds": 0,
            },
            "groups": { "default": { "entries": 3, "stale_entries": 0, "oldest_entry_age_seconds": 0 } },
        });
        change(&mut status);
        serde_json::from_value(status).unwrap()
    }

    fn verdict_of(change: impl FnOnce(&mut serde_json::Value)) -> (Level, String) {
        let verdict = Report::of(&status(change)).verdict;
        (verdict.level, verdict.text)
    }

    #[test]
    fn the_verdict_names_the_worst() {
        assert_eq!(verdict_of(|_| {}), (Level::Good, "ready".to_owned()));
        let throttled = |ago| json!({ "kind": "throttled", "message": "x", "seconds_ago": ago });
        type Change<'a> = &'a dyn Fn(&mut serde_json::Value);
        let cases: [(Level, &str, Change<'_>); 5] = [
            (Level::Bad, "not ready: preload", &|status| {
                status["ready"] = json!(false);
                status["not_ready_because"] = json!(["preload"]);
                status["upstream"]["state"] = json!("failing");
            }),
            (Level::Warning, "the source fails", &|status| status["upstream"]["state"] = json!("failing")),
            (Level::Warning, "does not answer", &|status| {
                status["upstream"]["places"][0]["breaker"] = json!("open");
            }),
            (Level::Warning, "throttled", &|status| status["upstream"]["last_error"] = throttled(10)),
            (Level::Warning, "2 secrets past", &|status| status["cache"]["stale_entries"] = json!(2)),
        ];
        for (level, part, change) in cases {
            let (found, text) = verdict_of(|status| change(status));
            assert!(found == level && text.contains(part), "{part}: {text}");
        }
        let old = verdict_of(|status| status["upstream"]["last_error"] = throttled(RECENT));
        assert_eq!(old.0, Level::Good, "what is long over worries nobody");
    }

    #[test]
    fn a_status_of_a_daemon_without_listeners_in_it_is_understood() {
        let report = Report::of(&status(|_| {}));
        assert!(report.sections.iter().all(|section| section.title != "Listeners"));
        assert!(report.sections.iter().any(|section| section.title == "Groups"));
    }
}
