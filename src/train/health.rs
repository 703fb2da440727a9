//! Signs that a run is not well although it goes on: a loss or a gradient norm far from where it was
//! lately, and a rank that the others wait for.

/// Weight of a new value in the running mean and variance: a memory of some 50 steps.
const MEMORY: f64 = 0.02;

/// Values before a deviation from their mean means anything.
const SETTLED: u32 = 20;

/// Standard deviations above the running mean from which a value is reported.
const OUTLIER: f64 = 6.0;

/// Steps over which a rank's time is compared.
const WINDOW: u32 = 50;

/// Share of the others' median above which a rank is called slow.
const SLOW: f64 = 1.2;

/// What one step showed, the same on every rank.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Signs {
    /// Standard deviations of the loss from its running mean.
    pub loss_z: Option<f64>,
    /// The same for the logarithm of the gradient's norm.
    pub norm_z: Option<f64>,
    /// At the end of a window in which one rank was slow.
    pub slow: Option<Slow>,
}

/// A rank that the others waited for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slow {
    pub rank: usize,
    /// Its mean milliseconds a step, waiting for other ranks left out.
    pub ms: f64,
    /// Median of the other ranks.
    pub others_ms: f64,
}

impl Signs {
    /// Warnings for the user, a line each.
    pub fn lines(&self, step: u64, loss: f64, norm: f64) -> Vec<String> {
        let far = |name: &str, value: f64, z: Option<f64>| {
            let z = z.filter(|z| *z > OUTLIER)?;
            Some(format!(
                "step {step}: {name} {value:.4} is {z:.1} standard deviations above its running mean"
            ))
        };
        let slow = self.slow.map(|Slow { rank, ms, others_ms }| {
            format!(
                "steps {} to {step}: rank {rank} is slow: {ms:.0} ms a step, the others {others_ms:.0} ms",
                step + 1 - u64::from(WINDOW)
            )
        });
        [far("loss", loss, self.loss_z), far("gradient norm", norm, self.norm_z), slow]
            .into_iter()
            .flatten()
            .collect()
    }
}

/// Follows a run.
#[derive(Clone, Debug, Default)]
pub struct Health {
    loss: Running,
    norm: Running,
    /// Sum of each rank's milliseconds in this window.
    busy: Vec<f64>,
    steps: u32,
}

impl Health {
    /// Records one step: its loss, its gradient's norm, and each rank's milliseconds.
    pub fn record(&mut self, loss: f64, norm: f64, busy_ms: impl Iterator<Item = f64>) -> Signs {
        let slow = self.compare(busy_ms.collect());
        Signs { loss_z: self.loss.record(loss), norm_z: self.norm.record(norm.ln()), slow }
    }

    fn compare(&mut self, busy_ms: Vec<f64>) -> Option<Slow> {
        self.busy.resize(busy_ms.len(), 0.0);
        self.busy.iter_mut().zip(&busy_ms).for_each(|(sum, ms)| *sum += ms);
        self.steps += 1;
        if self.steps < WINDOW {
            return None;
        }
        let means: Vec<f64> = self.busy.iter().map(|sum| sum / f64::from(self.steps)).collect();
        (self.steps, self.busy) = (0, Vec::new());
        let (rank, ms) = means.iter().copied().enumerate().max_by(|a, b| a.1.total_cmp(&b.1))?;
        let mut others: Vec<f64> =
            means.iter().copied().enumerate().filter(|(r, _)| *r != rank).map(|(_, ms)| ms).collect();
        others.sort_unstable_by(f64::total_cmp);
        let others_ms = *others.get(others.len() / 2)?; // a world of one has no others
        (ms > SLOW * others_ms).then_some(Slow { rank, ms, others_ms })
    }
}

/// Exponentially weighted mean and variance (Finch 2009, section 9).
#[derive(Clone, Copy, Debug, Default)]
pub struct Running {
    mean: f64,
    variance: f64,
    count: u32,
}

impl Running {
    /// Standard deviations of `value` from the values before it; `None` while these are few.
    pub fn record(&mut self, value: f64) -> Option<f64> {
        if !value.is_finite() {
            return None;
        }
        self.count = self.count.saturating_add(1);
        if self.count == 1 {
            self.mean = value;
            return None;
        }
        let difference = value - self.mean;
        let z = (self.count > SETTLED && self.variance > 0.0).then(|| difference / self.variance.sqrt());
        // the first values count alike, so that none of them rules the mean for long
        let weight = MEMORY.max(1.0 / f64::from(self.count));
        self.mean += weight * difference;
        self.variance = (1.0 - weight) * (self.variance + weight * difference * difference);
        z
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of mean 3 that wander by +-0.1.
    fn wander(i: u32) -> f64 {
        3.0 + 0.1 * (f64::from(i) * 1.7).sin()
    }

    #[test]
    fn a_spike_is_an_outlier_and_wandering_is_not() {
        let mut health = Health::default();
        let mut step = |loss: f64| health.record(loss, 1.0, [10.0].into_iter());
        for i in 0..200 {
            let signs = step(wander(i));
            assert!(signs.loss_z.is_none_or(|z| z.abs() < 3.0), "{signs:?}");
            assert_eq!(signs.loss_z.is_some(), i >= SETTLED);
        }
        let signs = step(6.0);
        assert!(signs.loss_z.is_some_and(|z| z > OUTLIER), "{signs:?}");
        assert_eq!(signs.lines(201, 6.0, 1.0).len(), 1);
        assert!(step(f64::NAN).loss_z.is_none());
        assert!(step(3.0).loss_z.is_some_and(|z| z.abs() < 3.0), "a NaN has spoilt the mean");
    }

    #[test]
    fn the_rank_that_others_wait_for_is_named_once_a_window() {
        let mut health = Health::default();
        let mut named = Vec::new();
        for _ in 0..2 * WINDOW {
            named.extend(health.record(1.0, 1.0, [10.0, 10.5, 14.0, 9.0].into_iter()).slow);
        }
        assert_eq!(named.len(), 2);
        assert_eq!((named[0].rank, named[0].others_ms), (2, 10.0));
        let mut even = Health::default();
        for _ in 0..WINDOW {
            assert_eq!(even.record(1.0, 1.0, [10.0, 11.0].into_iter()).slow, None);
        }
    }
}
