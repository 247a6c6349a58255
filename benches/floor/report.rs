//! What was measured, for people and for programs.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};

use crate::load::Outcome;
use crate::servers::{Servers, Transport};

/// One way of asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) transport: Transport,
    /// Bytes of the value.
    pub(crate) size: usize,
    pub(crate) connections: usize,
    /// Or a new connection for each request.
    pub(crate) keep_alive: bool,
}

/// A server in a cell: a number for each repeat, and the latencies of all.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    rates: Vec<f64>,
    /// Microseconds a request.
    cpu: Vec<f64>,
    latencies: Vec<Duration>,
}

impl Measured {
    pub(crate) fn note(&mut self, outcome: &Outcome, cpu: Duration) {
        self.rates.push(outcome.rate());
        self.cpu.push(cpu.as_secs_f64() * 1e6 / outcome.requests as f64);
    }

    pub(crate) fn note_latencies(&mut self, latencies: Vec<Duration>) {
        self.latencies.extend(latencies);
        self.latencies.sort_unstable();
    }

    /// In microseconds.
    fn latency(&self, part: f64) -> f64 {
        let at = ((self.latencies.len() as f64 * part) as usize).min(self.latencies.len().saturating_sub(1));
        self.latencies.get(at).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e6)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<(Cell, &'static str, Measured)>,
}

impl Report {
    pub(crate) fn add(&mut self, cell: Cell, server: &'static str, measured: Measured) {
        self.rows.push((cell, server, measured));
    }

    pub(crate) fn print_cell(&self, cell: Cell) {
        let transport = if cell.transport == Transport::Tcp { "TCP" } else { "Unix" };
        let kept = if cell.keep_alive { "kept" } else { "new" };
        let floor = self.of(cell, "bare hyper").map(|measured| median(&measured.cpu));
        for (_, server, measured) in self.rows.iter().filter(|(known, ..)| *known == cell) {
            let (least, most) = spread(&measured.cpu);
            println!(
                "{:<28} {:<11} {:>9.0} {:>8.2} {:>15} {:>6.2} {:>8.0} {:>8.0} {:>8.0} {:>8.0}",
                format!("{transport} {} B, {} {kept}", cell.size, cell.connections),
                server,
                median(&measured.rates),
                median(&measured.cpu),
                format!("{least:.2} to {most:.2}"),
                floor.map_or(f64::NAN, |floor| median(&measured.cpu) / floor),
                measured.latency(0.5),
                measured.latency(0.99),
                measured.latency(0.999),
                measured.latency(1.0),
            );
        }
    }

    /// The most that a read cost in any cell, as a multiple of what the bare server needs there.
    pub(crate) fn worst_ratio(&self) -> f64 {
        let ratio = |cell| {
            let [ours, floor] = ["smcached", "bare hyper"].map(|server| self.of(cell, server));
            Some(median(&ours?.cpu) / median(&floor?.cpu))
        };
        self.rows.iter().filter_map(|(cell, ..)| ratio(*cell)).fold(0.0, f64::max)
    }

    /// Writes `target/bench/floor-<plan>.json`.
    pub(crate) fn write(&self, plan: &str) {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|(cell, server, measured)| {
                json!({
                    "server": server,
                    "transport": if cell.transport == Transport::Tcp { "tcp" } else { "unix" },
                    "bytes": cell.size,
                    "connections": cell.connections,
                    "keep_alive": cell.keep_alive,
                    "requests_per_second": measured.rates,
                    "cpu_microseconds": measured.cpu,
                    "latency_microseconds": {
                        "p50": measured.latency(0.5), "p99": measured.latency(0.99),
                        "p99.9": measured.latency(0.999), "max": measured.latency(1.0),
                    },
                })
            })
            .collect();
        let folder = crate::support::in_repository("target/bench");
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join(format!("floor-{plan}.json"));
        fs::write(&path, serde_json::to_string_pretty(&rows).unwrap()).unwrap();
        println!("written to {}", path.display());
    }

    fn of(&self, cell: Cell, server: &str) -> Option<&Measured> {
        self.rows
            .iter()
            .find(|(known, name, _)| *known == cell && *name == server)
            .map(|(.., measured)| measured)
    }
}

pub(crate) fn print_head() {
    println!(
        "{:<28} {:<11} {:>9} {:>8} {:>15} {:>6} {:>8} {:>8} {:>8} {:>8}",
        "", "", "requests", "CPU", "spread", "ratio", "p50", "p99", "p99.9", "max"
    );
    println!(
        "{:<28} {:<11} {:>9} {:>8} {:>15} {:>6} {:>35}",
        "", "", "a second", "us", "us", "of CPU", "us, at half the rate"
    );
}

pub(crate) fn print_memory(servers: &Servers) {
    for server in servers.all() {
        println!("resident memory of {}: {:.1} MB", server.name, server.resident() as f64 / 1e6);
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn spread(values: &[f64]) -> (f64, f64) {
    values.iter().fold((f64::INFINITY, 0.0), |(least, most), value| (least.min(*value), most.max(*value)))
}
