//! Lines over a logarithmic axis, as SVG: `docs/performance/*.svg`, from the figures of the plan `plots`.

use std::fs;

use serde_json::Value;

use crate::report::file_of;
use crate::support::in_repository;

/// The plan whose figures are drawn.
pub(crate) const PLAN: &str = "plots";

/// A server's lines have its colour.
const COLOURS: [(&str, &str); 4] =
    [("smcached", "#c2410c"), ("bare hyper", "#57534e"), ("nginx", "#15803d"), ("AWS's agent", "#1d4ed8")];

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 190.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;

/// Which figures make a plot: those in which all is as here, but for one thing that grows.
struct Plot {
    file: &'static str,
    title: &'static str,
    /// What grows, as the figures name it and as people do.
    key: &'static str,
    label: &'static str,
    fixed: [(&'static str, u64); 2],
}

const PLOTS: [Plot; 3] = [
    Plot {
        file: "cpu-by-size.svg",
        title: "CPU a read, 64 connections",
        key: "bytes",
        label: "bytes of the value",
        fixed: [("connections", 64), ("values", 1)],
    },
    Plot {
        file: "cpu-by-connections.svg",
        title: "CPU a read, 200 bytes",
        key: "connections",
        label: "connections",
        fixed: [("bytes", 200), ("values", 1)],
    },
    Plot {
        file: "cpu-by-secrets.svg",
        title: "CPU a read, 200 bytes, 64 connections",
        key: "values",
        label: "secrets held and read by turns",
        fixed: [("bytes", 200), ("connections", 64)],
    },
];

/// Draws all plots from the figures that were measured last.
pub(crate) fn draw() {
    let path = file_of(PLAN);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let report: Value = serde_json::from_str(&text).unwrap();
    let cells = report["cells"].as_array().unwrap();
    fs::create_dir_all(in_repository("docs/performance")).unwrap();
    for plot in PLOTS {
        let path = in_repository("docs/performance").join(plot.file);
        fs::write(&path, plot.draw(cells)).unwrap();
        println!("drawn: {}", path.display());
    }
}

impl Plot {
    fn draw(&self, cells: &[Value]) -> String {
        let is_ours = |cell: &&Value| self.fixed.iter().all(|(key, value)| cell[*key] == *value);
        let cells: Vec<&Value> = cells.iter().filter(is_ours).collect();
        let number = |cell: &Value| (cell[self.key].as_f64().unwrap(), median(cell));
        let ticks: Vec<f64> = sorted(cells.iter().map(|cell| number(cell).0));
        let highest = cells.iter().map(|cell| number(cell).1).fold(0.0, f64::max);
        let step = 10_f64.powf((highest / 2.0).log10().floor()) * if highest > 40.0 { 1.0 } else { 2.0 };
        let top = (highest / step).ceil() * step;
        let across = |x: f64| {
            let (first, last) = (ticks[0].ln(), ticks[ticks.len() - 1].ln());
            LEFT + (x.ln() - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        };
        let down = |y: f64| HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
             font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        svg += &text(LEFT, TOP - 16.0, "start", &format!("{}: microseconds", self.title));
        svg += &text((LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 10.0, "middle", self.label);
        for y in (0..).map(|count| f64::from(count) * step).take_while(|y| *y <= top) {
            svg += &line(&[(LEFT, down(y)), (WIDTH - RIGHT, down(y))], "#e7e5e4", "");
            svg += &text(LEFT - 8.0, down(y) + 4.0, "end", &format!("{y}"));
        }
        for &x in &ticks {
            svg += &line(&[(across(x), down(0.0)), (across(x), down(0.0) + 5.0)], "#57534e", "");
            svg += &text(across(x), down(0.0) + 18.0, "middle", &format!("{x}"));
        }
        let mut legend = TOP;
        for (server, colour) in COLOURS {
            for (transport, dashes) in [("TCP", ""), ("Unix", "6 4")] {
                let of_line =
                    cells.iter().filter(|cell| cell["server"] == server && cell["transport"] == transport);
                let mut points: Vec<(f64, f64)> = of_line.map(|cell| number(cell)).collect();
                if points.is_empty() {
                    continue;
                }
                points.sort_unstable_by(|one, other| one.0.total_cmp(&other.0));
                let points: Vec<_> = points.iter().map(|(x, y)| (across(*x), down(*y))).collect();
                svg += &line(&points, colour, dashes);
                let from = WIDTH - RIGHT + 20.0;
                svg += &line(&[(from, legend), (from + 30.0, legend)], colour, dashes);
                svg += &text(from + 38.0, legend + 4.0, "start", &format!("{server}, {transport}"));
                legend += 20.0;
            }
        }
        svg + "</svg>\n"
    }
}

fn median(cell: &Value) -> f64 {
    cell["cpu_microseconds"]["median"].as_f64().unwrap()
}

fn sorted(numbers: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut numbers: Vec<f64> = numbers.collect();
    numbers.sort_unstable_by(f64::total_cmp);
    numbers.dedup();
    numbers
}

fn line(points: &[(f64, f64)], colour: &str, dashes: &str) -> String {
    let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    format!(
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" stroke-dasharray=\"{dashes}\"/>\n",
        points.join(" ")
    )
}

fn text(x: f64, y: f64, anchor: &str, text: &str) -> String {
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>\n")
}
