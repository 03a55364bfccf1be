//! Medians, geometric means, and the bars they are held against.

use super::rows::{Kind, ROWS, Row};
use super::systems::System;
use std::collections::BTreeMap;

/// The middle of some values, or the mean of the two in the middle.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[half]),
        _ => Some((values[half - 1] + values[half]) / 2.0),
    }
}

/// The geometric mean of positive values.
pub fn geometric_mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| (values.iter().map(|v| v.ln()).sum::<f64>() / values.len() as f64).exp())
}

/// Which of the two clocks of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// The host's clock.
    Wall,
    /// Processor time, which other programs on the host disturb less.
    Cpu,
}

/// Seconds by row, system and round, `[wall, cpu]`.
#[derive(Clone, Debug, Default)]
pub struct Samples(BTreeMap<(String, System), Vec<[f64; 2]>>);

impl Samples {
    /// Notes one.
    pub fn add(&mut self, row: &str, system: System, wall: f64, cpu: f64) {
        self.0.entry((row.to_owned(), system)).or_default().push([wall, cpu]);
    }

    /// All of a row and system, in the order of rounds.
    pub fn of(&self, row: &str, system: System) -> &[[f64; 2]] {
        self.0.get(&(row.to_owned(), system)).map_or(&[], Vec::as_slice)
    }

    /// The median in seconds. Disks and networks are waited for, which takes no processor time: they
    /// always go by the host's clock.
    pub fn seconds(&self, row: &str, system: System, clock: Clock) -> Option<f64> {
        median(self.all_seconds(row, system, clock).collect())
    }

    fn all_seconds(&self, row: &str, system: System, clock: Clock) -> impl Iterator<Item = f64> {
        let waits = ROWS.iter().any(|known| known.name == row && known.kind == Kind::Device);
        let clock = if waits { Clock::Wall } else { clock };
        self.of(row, system).iter().map(move |sample| sample[clock as usize])
    }

    /// One system's median over another's.
    pub fn ratio(&self, row: &str, over: System, under: System, clock: Clock) -> Option<f64> {
        let (over, under) = (self.seconds(row, over, clock)?, self.seconds(row, under, clock)?);
        (over > 0.0 && under > 0.0).then(|| over / under)
    }

    /// The standard error of that ratio, relative to it, from how much the ratios of single rounds differ; `None` for
    /// fewer than three rounds.
    pub fn error(&self, row: &str, over: System, under: System, clock: Clock) -> Option<f64> {
        let rounds = self.all_seconds(row, over, clock).zip(self.all_seconds(row, under, clock));
        let logs: Vec<f64> = rounds.map(|(over, under)| (over / under).ln()).collect();
        let rounds = logs.len() as f64;
        if rounds < 3.0 || !logs.iter().all(|log| log.is_finite()) {
            return None;
        }
        let mean = logs.iter().sum::<f64>() / rounds;
        let variance = logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / (rounds - 1.0);
        Some(OF_MEDIAN * (variance / rounds).sqrt())
    }
}

/// How much larger a median's standard error is than a mean's, of normally distributed samples: the root of π/2.
const OF_MEDIAN: f64 = 1.2533;

/// A bar and where we are.
#[derive(Clone, Debug)]
pub struct Bar {
    /// What is held against it.
    pub what: &'static str,
    /// The figure; `None` when it was not measured.
    pub value: Option<f64>,
    /// The bar.
    pub bar: f64,
    /// Whether the figure is to be at most the bar, rather than at least.
    pub at_most: bool,
    /// The row that decides, for worst rows.
    pub row: Option<&'static str>,
}

impl Bar {
    /// Whether it is met.
    pub fn met(&self) -> Option<bool> {
        self.value.map(|value| if self.at_most { value <= self.bar } else { value >= self.bar })
    }
}

/// The bars on ratios of rows.
pub fn bars(rows: &[Row], samples: &Samples, clock: Clock) -> Vec<Bar> {
    use System::{Native, QemuRecord, Record, Replay};
    let ratios = |kind: Kind, over: System, under: System| -> Vec<(&'static str, f64)> {
        let of_kind = rows.iter().filter(|row| row.kind == kind);
        of_kind.filter_map(|row| Some((row.name, samples.ratio(row.name, over, under, clock)?))).collect()
    };
    let mean = |what, kind, over, under, bar, at_most| {
        let values: Vec<f64> = ratios(kind, over, under).iter().map(|(_, ratio)| *ratio).collect();
        Bar { what, value: geometric_mean(&values), bar, at_most, row: None }
    };
    let worst = |what, ratios: Vec<(&'static str, f64)>, bar, at_most: bool| {
        let order = |a: &&(&str, f64), b: &&(&str, f64)| a.1.total_cmp(&b.1);
        let found = if at_most { ratios.iter().max_by(order) } else { ratios.iter().min_by(order) };
        Bar { what, value: found.map(|f| f.1), bar, at_most, row: found.map(|f| f.0) }
    };
    let boot = rows.iter().filter(|row| row.name == "boot");
    let boot = boot.filter_map(|row| Some((row.name, samples.ratio(row.name, QemuRecord, Record, clock)?)));
    let every = |over, under| -> Vec<_> {
        [Kind::Cpu, Kind::Kernel, Kind::Device, Kind::Boot]
            .into_iter()
            .flat_map(|kind| ratios(kind, over, under))
            .collect()
    };
    vec![
        mean("CPU rows, record / native, geometric mean", Kind::Cpu, Record, Native, 1.8, true),
        worst("CPU rows, record / native, worst row", ratios(Kind::Cpu, Record, Native), 3.0, true),
        mean("CPU rows, QEMU record / our record, geometric mean", Kind::Cpu, QemuRecord, Record, 7.0, false),
        worst(
            "CPU rows, QEMU record / our record, worst row",
            ratios(Kind::Cpu, QemuRecord, Record),
            2.0,
            false,
        ),
        mean("kernel rows, record / native, geometric mean", Kind::Kernel, Record, Native, 4.0, true),
        worst("kernel rows, record / native, worst row", ratios(Kind::Kernel, Record, Native), 7.0, true),
        mean(
            "kernel rows, QEMU record / our record, geometric mean",
            Kind::Kernel,
            QemuRecord,
            Record,
            3.0,
            false,
        ),
        worst(
            "kernel rows, QEMU record / our record, worst row",
            ratios(Kind::Kernel, QemuRecord, Record),
            1.3,
            false,
        ),
        worst("boot to init, QEMU record / our record", boot.collect(), 3.0, false),
        worst("our replay / our record, worst row", every(Replay, Record), 1.0, true),
        worst(
            "disk and network rows, throughput over QEMU record, worst row",
            ratios(Kind::Device, QemuRecord, Record),
            2.0,
            false,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_means() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(geometric_mean(&[1.0, 4.0]).map(f64::round), Some(2.0));
        assert_eq!(geometric_mean(&[]), None);
    }

    #[test]
    fn a_ratio_is_as_uncertain_as_its_rounds_differ() {
        let mut samples = Samples::default();
        let error = |samples: &Samples| samples.error("fib", System::Replay, System::Record, Clock::Wall);
        for replay in [1.1, 0.9, 1.1, 0.9] {
            assert!(samples.of("fib", System::Record).len() > 2 || error(&samples).is_none());
            samples.add("fib", System::Record, 2.0, 2.0);
            samples.add("fib", System::Replay, 2.0 * replay, 2.0);
        }
        assert!(error(&samples).is_some_and(|error| (0.07..0.075).contains(&error)), "{:?}", error(&samples));
        assert_eq!(samples.error("fib", System::Replay, System::Record, Clock::Cpu), Some(0.0));
    }

    #[test]
    fn bars_take_the_mean_and_the_worst_row_and_leave_out_what_was_not_measured() {
        let mut samples = Samples::default();
        for (row, native, record) in [("fib", 1.0, 2.0), ("hash", 1.0, 8.0)] {
            samples.add(row, System::Native, native, native);
            samples.add(row, System::Record, record, record);
        }
        let bars = bars(ROWS, &samples, Clock::Wall);
        assert_eq!((bars[0].value.map(f64::round), bars[0].met()), (Some(4.0), Some(false)));
        assert_eq!((bars[1].row, bars[1].value), (Some("hash"), Some(8.0)));
        assert_eq!((bars[2].value, bars[2].met()), (None, None));
    }
}
