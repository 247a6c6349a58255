//! `smcached doctor`: what is wrong with a node, and what mends it.
//!
//! It looks and changes nothing. `node` is what it finds on this host, `upstream` what AWS says.

mod node;
mod upstream;

use clap::Args;
use serde::Serialize;

use super::terminal::{Page, print};
use super::{ConfigArgs, Exit, Output, small_runtime, unreadable};
use crate::config::{Config, Environment, config_path};
use crate::hardening;
use crate::ops::Level;

const HELP: &str = "\
Examples:
  smcached doctor
  sudo -u smcached smcached doctor --config /etc/smcached/smcached.toml
  kubectl exec POD -- smcached doctor
  smcached doctor --output json | jq -r '.findings[] | select(.level == \"problem\") | .mend'

Run it as the daemon's user and in the daemon's environment: credentials, proxies and rights are those of \
whoever runs it. It asks AWS for each preloaded secret and keeps no value. Where nothing is preloaded it asks \
for smcached-doctor/no-such-secret, to see whether AWS accepts the credentials.

Exit codes:
  0  all is well; notes are no problems
  1  there are problems, or they cannot be looked for
  2  the command line is wrong

Environment:
  SMCACHED_CONFIG  the configuration file, where --config is not given
  AWS_*            as for `serve`
  NO_COLOR         no colours";

/// Look for what is wrong: configuration, credentials, permissions, clock, sockets, limits. Names the mend.
///
/// It changes nothing, and never shows a secret's value.
#[derive(Debug, Args)]
#[command(after_long_help = HELP)]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// How it is printed: for a person, or as JSON
    #[arg(long, value_enum, value_name = "FORM", default_value_t = Output::Text)]
    output: Output,
}

/// All that was found.
#[derive(Debug, Default, Serialize)]
struct Findings {
    findings: Vec<Finding>,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    level: Health,
    message: String,
    /// What to do about it.
    mend: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Health {
    Ok,
    /// It could be better, or could not be looked at.
    Note,
    Problem,
}

impl Health {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Problem => "problem",
        }
    }

    fn level(self) -> Level {
        match self {
            Self::Ok => Level::Good,
            Self::Note => Level::Warning,
            Self::Problem => Level::Bad,
        }
    }
}

impl Findings {
    fn ok(&mut self, check: &'static str, message: impl Into<String>) {
        self.findings.push(Finding { check, level: Health::Ok, message: message.into(), mend: None });
    }

    fn note(&mut self, check: &'static str, message: impl Into<String>, mend: impl Into<String>) {
        let (message, mend) = (message.into(), Some(mend.into()));
        self.findings.push(Finding { check, level: Health::Note, message, mend });
    }

    fn problem(&mut self, check: &'static str, message: impl Into<String>, mend: impl Into<String>) {
        let (message, mend) = (message.into(), Some(mend.into()));
        self.findings.push(Finding { check, level: Health::Problem, message, mend });
    }

    fn problems(&self) -> usize {
        self.findings.iter().filter(|finding| finding.level == Health::Problem).count()
    }
}

pub(super) fn run(args: DoctorArgs, environment: &Environment) -> Exit {
    let output = args.output;
    let examined = unreadable(hardening::forbid_dumps).and_then(|()| examine(args, environment));
    let findings = match examined {
        Ok(findings) => findings,
        Err(exit) => return exit,
    };
    let printed = match output {
        Output::Text => show(&findings, environment).print(),
        Output::Json => {
            // Strings always serialize into memory.
            let mut json = serde_json::to_vec_pretty(&findings).unwrap_or_default();
            json.push(b'\n');
            print(&json)
        }
    };
    match printed {
        Err(exit) => exit,
        Ok(()) if findings.problems() > 0 => Exit::Failure,
        Ok(()) => Exit::Success,
    }
}

fn examine(args: DoctorArgs, environment: &Environment) -> Result<Findings, Exit> {
    let mut findings = Findings::default();
    let Some(config) = configuration(args, environment, &mut findings) else { return Ok(findings) };
    small_runtime()?.block_on(async {
        node::examine(&config, &mut findings).await;
        upstream::examine(&config, environment, &mut findings).await;
    });
    Ok(findings)
}

/// The configuration, unless it is wrong: then there is nothing else to look at.
fn configuration(args: DoctorArgs, environment: &Environment, findings: &mut Findings) -> Option<Config> {
    const CHECK: &str = "configuration";
    let path = config_path(args.config.config, environment);
    let config = match Config::load(path.as_deref()) {
        Ok(config) => config,
        Err(complaints) => {
            for complaint in complaints.lines() {
                findings.problem(CHECK, complaint, "correct it there; docs/configuration.md has every key");
            }
            return None;
        }
    };
    for error in
        [environment.check(), environment.check_upstream(&config)].into_iter().filter_map(Result::err)
    {
        findings.problem(CHECK, error.to_string(), "correct the variable or key that it names");
    }
    let from = path
        .map_or_else(|| "built-in defaults; there is no file".to_owned(), |path| path.display().to_string());
    if findings.problems() == 0 {
        findings.ok(CHECK, from);
    }
    Some(config)
}

fn show(findings: &Findings, environment: &Environment) -> Page {
    let mut page = Page::new(environment);
    let longest = findings.findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
    let at = "problem".len() + 2 + longest + 2;
    for finding in &findings.findings {
        let name = format!("{:<9}{}", finding.level.word(), finding.check);
        page.row(&name, at, finding.level.level(), &finding.message);
        if let Some(mend) = &finding.mend {
            page.row("", at, Level::Good, &format!("-> {mend}"));
        }
    }
    page.gap();
    match findings.problems() {
        0 => page.line("All is well."),
        1 => page.line("1 problem."),
        problems => page.line(&format!("{problems} problems.")),
    }
    page
}
