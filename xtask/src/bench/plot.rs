//! The plot: how many times slower than native each row is, on a logarithmic scale.

use super::Results;
use super::rows::{Kind, Row};
use super::systems::System;

const LEFT: f64 = 150.0;
const WIDTH: f64 = 620.0;
const ROW: f64 = 30.0;
const TOP: f64 = 64.0;
/// The scale's ends, in times native.
const SCALE: [f64; 2] = [0.5, 300.0];
const SYSTEMS: [(System, &str, &str); 3] = [
    (System::Record, "hindsight record", "#1b6ca8"),
    (System::QemuTcg, "QEMU TCG", "#c9b28f"),
    (System::QemuRecord, "QEMU record", "#b5523b"),
];

/// Where a ratio is.
fn x(ratio: f64) -> f64 {
    let [low, high] = SCALE.map(f64::ln);
    LEFT + WIDTH * ((ratio.ln() - low) / (high - low)).clamp(0.0, 1.0)
}

/// An SVG of the rows that run natively.
pub fn svg(results: &Results) -> String {
    let rows: Vec<&Row> =
        results.rows.iter().filter(|row| matches!(row.kind, Kind::Cpu | Kind::Kernel)).collect();
    let height = TOP + ROW * rows.len() as f64 + 16.0;
    let (full, bottom) = (LEFT + WIDTH + 30.0, height - 10.0);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {full} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"{LEFT}\" y=\"16\" font-size=\"14\">Time for the same work, native = 1 (less is better)</text>\n"
    );
    for (n, (_, name, colour)) in SYSTEMS.iter().enumerate() {
        let at = LEFT + 160.0 * n as f64;
        out += &format!(
            "<rect x=\"{at}\" y=\"24\" width=\"12\" height=\"12\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"34\">{name}</text>\n",
            at + 17.0
        );
    }
    for tick in [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0] {
        let at = x(tick);
        let colour = if tick == 1.0 { "#555555" } else { "#dddddd" };
        out += &format!(
            "<line x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{bottom}\" stroke=\"{colour}\"/>\
             <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#555555\">{tick}×</text>\n",
            TOP - 6.0
        );
    }
    for (n, row) in rows.iter().enumerate() {
        let top = TOP + ROW * n as f64 + 4.0;
        out += &format!(
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\n",
            LEFT - 8.0,
            top + 14.0,
            row.name
        );
        for (m, (system, _, colour)) in SYSTEMS.iter().enumerate() {
            let Some(ratio) = results.samples.ratio(row.name, *system, System::Native, results.clock())
            else {
                continue;
            };
            let (from, to) = (x(1.0).min(x(ratio)), x(1.0).max(x(ratio)));
            out += &format!(
                "<rect x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"7\" fill=\"{colour}\"><title>{} {ratio:.2}</title></rect>\n",
                top + 7.5 * m as f64,
                (to - from).max(1.0),
                row.name,
            );
        }
    }
    out + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::super::rows::choose;
    use super::*;

    #[test]
    fn a_bar_for_each_measured_system_and_none_for_others() {
        let mut results = Results { rows: choose(&["fib".to_owned()]).unwrap(), ..Results::default() };
        results.samples.add("fib", System::Native, 1.0, 1.0);
        results.samples.add("fib", System::Record, 2.0, 2.0);
        let svg = svg(&results);
        assert_eq!(svg.matches("<title>fib").count(), 1);
        assert!(svg.contains("<title>fib 2.00</title>") && svg.ends_with("</svg>\n"));
    }

    #[test]
    fn the_scale_is_logarithmic_and_bounded() {
        assert!((x(10.0) - x(1.0) - (x(100.0) - x(10.0))).abs() < 1e-6);
        assert!((x(1e9) - (LEFT + WIDTH)).abs() < 1e-9 && (x(1e-9) - LEFT).abs() < 1e-9);
    }
}
