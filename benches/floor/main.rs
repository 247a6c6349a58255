//! What a cached read costs, beside a bare hyper server that sends the same bytes under the same headers:
//! `cargo bench --bench floor [-- quick|full|guard]`.
//!
//! Each server has one core to itself and the load the other. They are driven by turns, so that whatever else the
//! machine does falls on all of them: first as fast as they can, which gives requests a second and CPU a request; then
//! at half the rate of the slowest, which gives latencies, counted from the moment at which a request was due.
//! The daemon is measured with an audit trail too, and nginx if it is there.

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
mod report;
mod servers;

use std::process::{Command, exit};
use std::time::Duration;

use load::{Load, Pace, Target};
use report::{Cell, Measured, Report};
use servers::{Server, Servers, Transport};

/// The binary under test.
const SMCACHED: &str = env!("CARGO_BIN_EXE_smcached");

/// The core of the server that is measured, and that of the load.
const SERVER_CORE: &str = "0";
const LOAD_CORE: &str = "1";

/// Says to the process that it runs on its core already.
const PINNED: &str = "SMCACHED_BENCH_PINNED";

/// The guard fails where a read costs more than this, as a multiple of what the bare server needs. What is agreed is a
/// good deal less; noise never makes it fail.
const GUARD: f64 = 1.5 * 1.15;

/// What is measured, and for how long.
struct Plan {
    cells: Vec<Cell>,
    repeats: usize,
    length: Duration,
    with_latency: bool,
}

impl Plan {
    fn named(name: &str) -> Option<Self> {
        let cells = |sizes: &[usize], connections: &[usize], keep_alive: &[bool]| {
            let mut cells = Vec::new();
            for transport in [Transport::Tcp, Transport::Unix] {
                for &size in sizes {
                    for &keep_alive in keep_alive {
                        for &connections in connections {
                            cells.push(Cell { transport, size, connections, keep_alive });
                        }
                    }
                }
            }
            cells
        };
        let long = Duration::from_secs(2);
        Some(match name {
            "quick" => Self {
                cells: cells(&[200, 64 << 10], &[64], &[true]),
                repeats: 5,
                length: long,
                with_latency: true,
            },
            "full" => Self {
                cells: cells(&[200, 4 << 10, 64 << 10], &[1, 16, 64, 256], &[true, false]),
                repeats: 3,
                length: Duration::from_secs(1),
                with_latency: true,
            },
            "guard" => Self {
                cells: cells(&[200], &[64], &[true]),
                repeats: 3,
                length: Duration::from_secs(1),
                with_latency: false,
            },
            _ => return None,
        })
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [mode, rest @ ..] = &arguments[..]
        && mode == bare::MODE
    {
        return bare::serve(rest);
    }
    let name = arguments.first().map_or("quick", String::as_str);
    let Some(plan) = Plan::named(name) else {
        println!("unknown plan {name:?}; there are quick, full and guard");
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
    let servers = Servers::start();
    let mut report = Report::default();
    report::print_head();
    for cell in &plan.cells {
        measure(&plan, *cell, &servers, &mut report);
    }
    report::print_memory(&servers);
    report.write(name);
    if name == "guard" {
        let worst = report.worst_ratio();
        println!(
            "the guard: a read costs at most {worst:.2} times the bare server's CPU; {GUARD:.2} would be too much"
        );
        exit(i32::from(worst > GUARD));
    }
}

/// Drives all servers of a cell by turns.
fn measure(plan: &Plan, cell: Cell, servers: &Servers, report: &mut Report) {
    let measuring: Vec<&Server> = servers.all().collect();
    let targets: Vec<Target> = measuring.iter().map(|server| server.target(cell)).collect();
    let mut measured: Vec<Measured> = measuring.iter().map(|_| Measured::default()).collect();
    let mut slowest = f64::INFINITY;
    for target in &targets {
        // Caches, and the daemon's own: not counted.
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
