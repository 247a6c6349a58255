//! `smcached status`: what `/status` of the ops listener says, in a terminal.

use clap::Args;

use super::terminal::{Page, print};
use super::{ConfigArgs, Exit, Output, complain, load, ops, small_runtime};
use crate::config::{ClientAddress, Environment};
use crate::net::{ClientError, Endpoint, PATIENCE, fetch};
use crate::ops::{Report, Status};

const HELP: &str = "\
Examples:
  smcached status
  smcached status --address 127.0.0.1:9273
  watch smcached status
  smcached status --output json | jq .upstream.state

Exit codes:
  0  the daemon has answered, ready or not; `healthcheck` tells whether it is
  1  it cannot be asked, or what answers is no ops listener of smcached
  2  the command line or the configuration is wrong, or its ops listener is off

Environment:
  SMCACHED_OPS_ADDRESS  the ops listener, where --address is not given
  SMCACHED_CONFIG       the configuration file, where --config is not given
  NO_COLOR              no colours";

/// Print how the daemon fares: what it holds, how AWS answers, who is connected.
///
/// The same can be had from a browser, at `/status` of the ops listener. It never shows a secret's value or name.
#[derive(Debug, Args)]
#[command(after_long_help = HELP)]
pub(super) struct StatusArgs {
    /// The ops listener [default: `$SMCACHED_OPS_ADDRESS`, else what the configuration has as `ops.tcp`]
    #[arg(long, value_name = "HOST:PORT", value_parser = ClientAddress::parse_ops)]
    address: Option<String>,
    #[command(flatten)]
    config: ConfigArgs,
    /// How it is printed: for a person, or as JSON, just as `/status` answers
    #[arg(long, value_enum, value_name = "FORM", default_value_t = Output::Text)]
    output: Output,
}

pub(super) fn run(args: StatusArgs, environment: &Environment) -> Exit {
    let output = args.output;
    let shown = find(args, environment)
        .and_then(|endpoint| {
            let asked = small_runtime()?.block_on(ask(&endpoint));
            asked.map_err(|problem| {
                complain(&problem);
                Exit::Failure
            })
        })
        .and_then(|(json, status)| match output {
            Output::Json => print(&json),
            Output::Text => show(&status, environment).print(),
        });
    shown.err().unwrap_or(Exit::Success)
}

fn find(args: StatusArgs, environment: &Environment) -> Result<Endpoint, Exit> {
    let named = environment.ops_address().map_err(|error| {
        complain(&error);
        Exit::Usage
    });
    if let Some(address) = args.address.map_or_else(|| named, |address| Ok(Some(address)))? {
        return Ok(Endpoint::Tcp(address));
    }
    ops::endpoint(&load(args.config, environment)?).ok_or_else(|| {
        complain(&ops::OFF);
        Exit::Usage
    })
}

/// What the daemon says, as it says it and as it is understood.
pub(super) async fn ask(endpoint: &Endpoint) -> Result<(Vec<u8>, Status), String> {
    let asked = fetch(endpoint, "/status", &[("accept", "application/json")], PATIENCE).await;
    let (head, body) = asked.map_err(|error: ClientError| error.to_string())?;
    let status = head.status.is_success().then(|| serde_json::from_slice(&body).ok()).flatten();
    match status {
        Some(status) => Ok((body.to_vec(), status)),
        None => Err(format!("what answers at {endpoint} is not the ops listener of smcached")),
    }
}

fn show(status: &Status, environment: &Environment) -> Page {
    let report = Report::of(status);
    let names = report.sections.iter().flat_map(|section| &section.rows).map(|row| row.name.chars().count());
    // Long names, such as roles, go above what is said of them.
    let at = names.filter(|length| *length < 24).max().unwrap_or(0) + 2;
    let mut page = Page::new(environment);
    let verdict = &report.verdict;
    page.row(&format!("{}:", verdict.name), verdict.name.len() + 2, verdict.level, &verdict.text);
    for section in &report.sections {
        page.gap();
        page.line(section.title);
        for row in &section.rows {
            page.row(&format!("  {}", row.name), at + 2, row.level, &row.text);
        }
    }
    page
}
