//! What was measured, for people and for programs.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::load::Outcome;
use crate::servers::{Servers, Transport};

/// The server that is the measure of all others.
const FLOOR: &str = "bare hyper";

/// One way of asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) transport: Transport,
    /// Bytes of a value.
    pub(crate) size: usize,
    pub(crate) connections: usize,
    /// Or a new connection for each request.
    pub(crate) keep_alive: bool,
    /// How many values are asked for, by turns.
    pub(crate) values: usize,
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

    /// What it cost as a multiple of another, turn by turn.
    fn ratios(&self, floor: &Self) -> Vec<f64> {
        self.cpu.iter().zip(&floor.cpu).map(|(ours, floor)| ours / floor).collect()
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
        let kept = if cell.keep_alive { "kept" } else { "new" };
        let many = if cell.values > 1 { format!(", {} values", cell.values) } else { String::new() };
        for (_, server, measured) in self.rows.iter().filter(|(known, ..)| *known == cell) {
            let [cpu, ratio] = [measured.cpu.clone(), self.ratios(cell, measured)].map(|n| Spread::of(&n));
            println!(
                "{:<38} {:<11} {:>9.0} {:>7.2} {:>15} {:>6.2} {:>12} {:>8.0} {:>8.0} {:>8.0} {:>8.0}",
                format!("{} {} B, {} {kept}{many}", cell.transport.name(), cell.size, cell.connections),
                server,
                Spread::of(&measured.rates).median,
                cpu.median,
                cpu.range(),
                ratio.median,
                ratio.range(),
                measured.latency(0.5),
                measured.latency(0.99),
                measured.latency(0.999),
                measured.latency(1.0),
            );
        }
    }

    /// The most that a read of ours cost in any cell, as a multiple of what the bare server needed in the same turn; of
    /// each cell that turn counts which was best for us.
    pub(crate) fn worst_ratio(&self) -> f64 {
        let ours = self.rows.iter().filter(|(_, server, _)| *server == "smcached");
        ours.map(|(cell, _, measured)| Spread::of(&self.ratios(*cell, measured)).least).fold(0.0, f64::max)
    }

    /// Writes the file of a plan.
    pub(crate) fn write(&self, plan: &str, servers: &Servers) {
        let cells: Vec<Value> = self.rows.iter().map(|row| self.row_as_json(row)).collect();
        let resident: Map<String, Value> = servers
            .all()
            .map(|server| {
                let bytes = json!({ "idle": server.resident_idle, "at_the_end": server.resident() });
                (server.name.to_owned(), bytes)
            })
            .collect();
        let report = json!({ "plan": plan, "resident_bytes": resident, "cells": cells });
        let path = file_of(plan);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, serde_json::to_string_pretty(&report).unwrap()).unwrap();
        println!("written to {}", path.display());
    }

    fn row_as_json(&self, (cell, server, measured): &(Cell, &'static str, Measured)) -> Value {
        json!({
            "server": server,
            "transport": cell.transport.name(),
            "bytes": cell.size,
            "connections": cell.connections,
            "keep_alive": cell.keep_alive,
            "values": cell.values,
            "requests_per_second": Spread::of(&measured.rates).as_json(&measured.rates),
            "cpu_microseconds": Spread::of(&measured.cpu).as_json(&measured.cpu),
            "cpu_ratio": Spread::of(&self.ratios(*cell, measured)).as_json(&self.ratios(*cell, measured)),
            "latency_microseconds": {
                "p50": measured.latency(0.5), "p99": measured.latency(0.99),
                "p99.9": measured.latency(0.999), "max": measured.latency(1.0),
            },
        })
    }

    /// What a server cost in a cell, as a multiple of what the bare one did.
    fn ratios(&self, cell: Cell, measured: &Measured) -> Vec<f64> {
        let floor = self.rows.iter().find(|(known, server, _)| *known == cell && *server == FLOOR);
        floor.map_or_else(Vec::new, |(.., floor)| measured.ratios(floor))
    }
}

/// Where the figures of a plan are kept.
pub(crate) fn file_of(plan: &str) -> PathBuf {
    crate::support::in_repository(&format!("target/bench/floor-{plan}.json"))
}

pub(crate) fn print_head() {
    println!(
        "{:<38} {:<11} {:>9} {:>7} {:>15} {:>6} {:>12} {:>8} {:>8} {:>8} {:>8}",
        "", "", "requests", "CPU", "least to most", "ratio", "least to", "p50", "p99", "p99.9", "max"
    );
    println!(
        "{:<38} {:<11} {:>9} {:>7} {:>15} {:>6} {:>12} {:>35}",
        "", "", "a second", "us", "us", "of CPU", "most", "us, at half the rate"
    );
}

pub(crate) fn print_memory(servers: &Servers) {
    for server in servers.all() {
        let [idle, now] = [server.resident_idle, server.resident()].map(|bytes| bytes as f64 / 1e6);
        println!("resident memory of {}: {idle:.1} MB before the first read, {now:.1} MB now", server.name);
    }
}

/// The numbers of several repeats.
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    fn of(numbers: &[f64]) -> Self {
        let mut sorted = numbers.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
        Self { median: at(sorted.len() / 2), least: at(0), most: at(sorted.len().saturating_sub(1)) }
    }

    fn range(&self) -> String {
        format!("{:.2} to {:.2}", self.least, self.most)
    }

    fn as_json(&self, repeats: &[f64]) -> Value {
        json!({ "median": self.median, "least": self.least, "most": self.most, "repeats": repeats })
    }
}
