//! Whether two runs differ by more than the luck of the topics. The paired t-test is what papers
//! report; Fisher's randomisation assumes no distribution (Smucker, Allan and Carterette, CIKM 2007,
//! find the two to agree on retrieval measures); Holm's correction guards against testing many
//! measures or runs until one is significant. Random draws come from a counter, so a p-value is the
//! same on every machine and for every number of threads.

use rayon::prelude::*;
use statrs::distribution::{ContinuousCDF, StudentsT};

use crate::random::{Purpose, philox};
use crate::{Error, Result};

/// Student's paired t-test, two-sided.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairedT {
    /// Mean of a - b.
    pub mean_difference: f64,
    pub t: f64,
    /// Pairs - 1.
    pub df: usize,
    pub p: f64,
}

/// Tests whether the mean of `a[i] - b[i]` is zero. One pair, or differences that are all zero, are no
/// evidence: t = 0, p = 1. If all differences are the same other number, t is infinite and p = 0. Errors: no
/// pair, different lengths.
pub fn paired_t(a: &[f64], b: &[f64]) -> Result<PairedT> {
    let differences = differences(a, b)?;
    let n = differences.len() as f64;
    let df = differences.len() - 1;
    let mean_difference = differences.iter().sum::<f64>() / n;
    if df == 0 || differences.iter().all(|&d| d == 0.0) {
        return Ok(PairedT { mean_difference, t: 0.0, df, p: 1.0 });
    }
    let squares = differences.iter().map(|d| (d - mean_difference).powi(2)).sum::<f64>();
    let error = (squares / df as f64 / n).sqrt();
    if error == 0.0 {
        return Ok(PairedT { mean_difference, t: f64::INFINITY.copysign(mean_difference), df, p: 0.0 });
    }
    let t = mean_difference / error;
    let student = StudentsT::new(0.0, 1.0, df as f64)
        .map_err(|error| Error::data(format!("Student's t with {df} degrees of freedom: {error}")))?;
    // The lower tail keeps its digits where 1 - cdf would lose them.
    Ok(PairedT { mean_difference, t, df, p: (2.0 * student.cdf(-t.abs())).min(1.0) })
}

/// Fisher's randomisation test, two-sided: the share of `permutations` random swaps of the two runs, topic by
/// topic, whose mean difference is at least as far from zero, counting the actual assignment as one of them
/// (so p is never 0). Errors: no pair, different lengths.
pub fn randomisation(a: &[f64], b: &[f64], permutations: u32, seed: u32) -> Result<f64> {
    let differences = differences(a, b)?;
    let observed = differences.iter().sum::<f64>().abs();
    // Sums of the same numbers with other signs differ by rounding, which must not count as "less extreme".
    let slack = 1e-12 * differences.iter().map(|d| d.abs()).sum::<f64>();
    let extreme = (0..permutations)
        .into_par_iter()
        .filter(|&permutation| {
            let mut sum = 0.0;
            for (block, part) in differences.chunks(128).enumerate() {
                let words = philox(Purpose::Permute.key(seed), [permutation, block as u32, 0, 0]);
                for (place, &difference) in part.iter().enumerate() {
                    let swap = words[place / 32] >> (place % 32) & 1 == 1;
                    sum += if swap { -difference } else { difference };
                }
            }
            sum.abs() >= observed - slack
        })
        .count();
    Ok((extreme + 1) as f64 / (f64::from(permutations) + 1.0))
}

/// The percentile bootstrap's 95 % interval of the mean difference a - b, from `resamples` draws of
/// topics with replacement. Errors: no pair, different lengths, no resample.
pub fn bootstrap_interval(a: &[f64], b: &[f64], resamples: u32, seed: u32) -> Result<(f64, f64)> {
    let differences = differences(a, b)?;
    if resamples == 0 {
        return Err(Error::config("a bootstrap needs at least one resample"));
    }
    let n = differences.len() as u64;
    let mut means = (0..resamples)
        .into_par_iter()
        .map(|resample| {
            let mut sum = 0.0;
            for block in 0..n.div_ceil(4) {
                let words = philox(Purpose::Resample.key(seed), [resample, block as u32, 0, 0]);
                for word in &words[..4.min((n - 4 * block) as usize)] {
                    sum += differences[((u64::from(*word) * n) >> 32) as usize];
                }
            }
            sum / n as f64
        })
        .collect::<Vec<f64>>();
    means.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| means[(share * (means.len() - 1) as f64).round() as usize];
    Ok((at(0.025), at(0.975)))
}

/// Holm's step-down correction (Holm 1979): p-values in the given order, each adjusted so that calling
/// all below 0.05 significant errs anywhere with probability at most 0.05.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order = (0..p.len()).collect::<Vec<_>>();
    order.sort_by(|&i, &j| p[i].total_cmp(&p[j]));
    let (mut adjusted, mut least) = (vec![0.0; p.len()], 0.0_f64);
    for (place, &i) in order.iter().enumerate() {
        least = least.max(p[i] * (p.len() - place) as f64).min(1.0);
        adjusted[i] = least;
    }
    adjusted
}

/// How many topics `a` wins, ties and loses against `b`.
pub fn wins_ties_losses(a: &[f64], b: &[f64]) -> Result<(usize, usize, usize)> {
    let differences = differences(a, b)?;
    let wins = differences.iter().filter(|&&d| d > 0.0).count();
    let losses = differences.iter().filter(|&&d| d < 0.0).count();
    Ok((wins, differences.len() - wins - losses, losses))
}

fn differences(a: &[f64], b: &[f64]) -> Result<Vec<f64>> {
    if a.len() != b.len() || a.is_empty() {
        return Err(Error::data(format!(
            "a comparison needs values of the same topics: {} and {} were given",
            a.len(),
            b.len()
        )));
    }
    Ok(a.iter().zip(b).map(|(a, b)| a - b).collect())
}
