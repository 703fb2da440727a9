//! Whether a value is unusual for this run: its z-score among the values before it, as llm.c's outlier
//! detector has it. A loss that jumps shows here before it shows in a curve.

use std::collections::VecDeque;

/// Values that a score is measured against.
const WINDOW: usize = 128;
/// Values before the first score: with fewer, a standard deviation means little.
const LEAST: usize = 16;

/// The last values of one quantity.
#[derive(Clone, Debug, Default)]
pub struct Running {
    values: VecDeque<f64>,
}

impl Running {
    /// How many standard deviations `value` lies above the mean of the up to 128 values before it; then
    /// `value` is one of them. `None` for the first 16, while all are equal, and for a value that is not
    /// finite, which is not counted.
    pub fn score(&mut self, value: f64) -> Option<f64> {
        if !value.is_finite() {
            return None;
        }
        let n = self.values.len() as f64;
        let mean = self.values.iter().sum::<f64>() / n;
        let deviation = (self.values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt();
        let score = (self.values.len() >= LEAST && deviation > 0.0).then(|| (value - mean) / deviation);
        if self.values.len() == WINDOW {
            self.values.pop_front();
        }
        self.values.push_back(value);
        score
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_deviations_from_the_values_before() {
        let mut running = Running::default();
        for i in 0..LEAST {
            assert_eq!(running.score(if i % 2 == 0 { 1.0 } else { 3.0 }), None);
        }
        assert_eq!(running.score(f64::NAN), None);
        assert_eq!(running.score(5.0), Some(3.0));
        for _ in 0..2 * WINDOW {
            running.score(7.0);
        }
        assert_eq!(running.score(7.0), None, "old values have left the window");
        assert_eq!(running.values.len(), WINDOW);
    }
}
