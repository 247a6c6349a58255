//! What a cached read costs, beside a bare hyper server that sends the same bytes under the same headers:
//! `cargo bench --bench floor [-- quick|full|table|guard|plots|draw]`.
//!
//! Each server has one core to itself and the load the other. They are driven by turns, so that whatever else the
//! machine does falls on all of them: first as fast as they can, which gives requests a second and CPU a request; then
//! at half the rate of the slowest, which gives latencies, counted from the moment at which a request was due.
//! The daemon is measured with an audit trail too, nginx if it is there, and AWS's agent if `SMCACHED_BENCH_AWS_AGENT` names
//! its binary. `plots` measures what `docs/performance/*.svg` show, and draws them; `draw` draws them again.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on says where")]
#![allow(clippy::print_stdout, reason = "the table is the output")]
#![allow(
    clippy::disallowed_methods,
    reason = "no runtime here: time passes, and the process decides on its end"
)]
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

#[path = "../../tests/support/mod.rs"]
mod support;

mod bare;
mod load;
mod plot;
mod report;
mod servers;

use std::process::{Command, exit};
use std::time::Duration;

use load::{Load, Pace, Target};
use report::{Cell, Measured, Report};
use servers::{SIZES, SMALL, Server, Servers, Transport};

/// The binary under test.
const SMCACHED: &str = env!("CARGO_BIN_EXE_smcached");

/// The core of the server that is measured, and that of the load.
const SERVER_CORE: &str = "0";
const LOAD_CORE: &str = "1";

/// Says to the process that it runs on its core already.
const PINNED: &str = "SMCACHED_BENCH_PINNED";

/// The guard fails where a read costs more than this, as a multiple of what the bare server needs, in each turn. What is
/// agreed is a good deal less: noise never makes it fail.
const GUARD: f64 = 1.5 * 1.15;

/// What is measured, and for how long.
struct Plan {
    cells: Vec<Cell>,
    repeats: usize,
    length: Duration,
    with_latency: bool,
}

const BOTH: &[Transport] = &[Transport::Tcp, Transport::Unix];

impl Plan {
    fn named(name: &str) -> Option<Self> {
        let kept = |transports: &[Transport], sizes: &[usize], connections: &[usize]| {
            cells(transports, sizes, connections, true)
        };
        let second = Duration::from_secs(1);
        let (cells, repeats, length, with_latency) = match name {
            "quick" => (kept(BOTH, &[SMALL, 64 << 10], &[64]), 5, second * 2, true),
            "full" => {
                let of = |keep_alive| cells(BOTH, &[SMALL, 4 << 10, 64 << 10], &[1, 16, 64, 256], keep_alive);
                ([of(true), of(false)].concat(), 3, second, true)
            }
            "table" => {
                let large = kept(&[Transport::Tcp], &[64 << 10], &[64]);
                ([kept(BOTH, &[SMALL], &[64]), large].concat(), 3, second * 3, true)
            }
            "guard" => (kept(BOTH, &[SMALL], &[64]), 5, second, false),
            plot::PLAN => {
                let many = [100, 1_000, 10_000].map(|values| {
                    let with = |cell| Cell { values, ..cell };
                    kept(BOTH, &[SMALL], &[64]).into_iter().map(with).collect::<Vec<_>>()
                });
                let sizes = kept(BOTH, &SIZES, &[64]);
                let connections = kept(BOTH, &[SMALL], &[1, 4, 16, 256]);
                ([sizes, connections, many.concat()].concat(), 3, second, false)
            }
            _ => return None,
        };
        Some(Self { cells, repeats, length, with_latency })
    }

    /// The most values that any cell asks for.
    fn values(&self) -> usize {
        self.cells.iter().map(|cell| cell.values).max().unwrap_or(1)
    }
}

fn cells(transports: &[Transport], sizes: &[usize], connections: &[usize], keep_alive: bool) -> Vec<Cell> {
    let mut cells = Vec::new();
    for &transport in transports {
        for &size in sizes {
            for &connections in connections {
                cells.push(Cell { transport, size, connections, keep_alive, values: 1 });
            }
        }
    }
    cells
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [mode, rest @ ..] = &arguments[..]
        && mode == bare::MODE
    {
        return bare::serve(rest);
    }
    let name = arguments.first().map_or("quick", String::as_str);
    if name == "draw" {
        return plot::draw();
    }
    let Some(plan) = Plan::named(name) else {
        println!("unknown plan {name:?}; there are quick, full, table, guard, plots and draw");
        exit(2);
    };
    if std::env::var_os(PINNED).is_none() {
        // Everything of this process, threads included, keeps off the server's core.
        let itself = std::env::current_exe().unwrap();
        let status = Command::new("taskset")
            .args(["-c", LOAD_CORE])
            .arg(itself)
            .args(&arguments)
            .env(PINNED, "1")
            .status()
            .unwrap();
        exit(status.code().unwrap_or(1));
    }
    let servers = Servers::start(plan.values());
    let mut report = Report::default();
    report::print_head();
    for cell in &plan.cells {
        measure(&plan, *cell, &servers, &mut report);
    }
    report::print_memory(&servers);
    report.write(name, &servers);
    if name == "guard" {
        let worst = report.worst_ratio();
        println!(
            "the guard: a read costs at most {worst:.2} times the bare server's CPU; more than {GUARD:.2} is too much"
        );
        // With it all servers would outlive us.
        drop(servers);
        exit(i32::from(worst > GUARD));
    }
    if name == plot::PLAN {
        plot::draw();
    }
}

/// Drives all servers of a cell by turns.
fn measure(plan: &Plan, cell: Cell, servers: &Servers, report: &mut Report) {
    let (measuring, targets): (Vec<&Server>, Vec<Target>) =
        servers.all().filter_map(|server| Some((server, server.target(cell)?))).unzip();
    let mut measured: Vec<Measured> = measuring.iter().map(|_| Measured::default()).collect();
    let mut slowest = f64::INFINITY;
    for target in &targets {
        // Caches, and the daemon's own: not counted.
        Load::new(target, cell).run(Pace::Once, Duration::from_mins(1));
        Load::new(target, cell).run(Pace::Closed, plan.length / 4);
    }
    for _ in 0..plan.repeats {
        for ((server, target), measured) in measuring.iter().zip(&targets).zip(&mut measured) {
            let before = server.cpu();
            let outcome = Load::new(target, cell).run(Pace::Closed, plan.length);
            let cpu = server.cpu().saturating_sub(before);
            measured.note(&outcome, cpu);
            slowest = slowest.min(outcome.rate());
        }
    }
    if plan.with_latency {
        for _ in 0..plan.repeats {
            for (target, measured) in targets.iter().zip(&mut measured) {
                let outcome = Load::new(target, cell).run(Pace::Open { rate: slowest / 2.0 }, plan.length);
                measured.note_latencies(outcome.latencies);
            }
        }
    }
    for (server, measured) in measuring.iter().zip(measured) {
        report.add(cell, server.name, measured);
    }
    report.print_cell(cell);
}
