//! The measures that weigh a document by its label: nDCG and its relatives. "Ideal" is the order of
//! all judged documents by label; a topic where no label is above 0 has 0.

use super::ranking::{Ranking, total};

/// A sum over ranks from 1: gain / log2(rank + 1).
fn discounted(gain: f64, place: usize) -> f64 {
    gain / ((place + 2) as f64).log2()
}

impl Ranking {
    /// nDCG of the first `k` with any gain of a label.
    pub fn ndcg(&self, k: usize, gain: impl Fn(i32) -> f64) -> f64 {
        let sum = |labels: &[i32]| {
            let gains = labels.iter().take(k).enumerate().filter(|&(_, &label)| label > 0);
            total(gains.map(|(place, &label)| discounted(gain(label), place)))
        };
        let ideal = sum(&self.ideal);
        if ideal > 0.0 { sum(&self.labels) / ideal } else { 0.0 }
    }

    /// The gain at a place of the best order; 0 after its end.
    fn ideal_gain(&self, place: usize) -> f64 {
        f64::from(self.ideal.get(place).copied().unwrap_or(0))
    }

    /// The mean, over documents with a gain, of the nDCG at their rank. A document that was not retrieved
    /// counts with the gains of the whole list over those of the whole best order.
    pub fn ndcg_at_relevant(&self) -> f64 {
        if self.ideal.is_empty() {
            return 0.0;
        }
        let (mut dcg, mut ideal, mut sum, mut found) = (0.0, 0.0, 0.0, 0);
        for (place, &label) in self.labels.iter().enumerate() {
            ideal += discounted(self.ideal_gain(place), place);
            if label > 0 {
                dcg += discounted(f64::from(label), place);
                sum += dcg / ideal;
                found += 1;
            }
        }
        ideal += total((self.labels.len()..self.ideal.len()).map(|i| discounted(self.ideal_gain(i), i)));
        sum += (self.ideal.len() - found) as f64 * dcg / ideal;
        sum / self.ideal.len() as f64
    }

    /// The mean of the nDCG at each rank where the best order goes down to a lower label, and at the end of
    /// the list if that lies beyond. It is 0 if no label reaches the level, which otherwise does not matter.
    pub fn ndcg_at_levels(&self) -> f64 {
        if self.relevant == 0 {
            return 0.0;
        }
        let (mut dcg, mut ideal, mut sum, mut levels) = (0.0, 0.0, 0.0, 0);
        for place in 0..=self.ideal.len() {
            if place > 0 && self.ideal_gain(place) != self.ideal_gain(place - 1) {
                sum += dcg / ideal;
                levels += 1;
            }
            dcg += self.gain_at(place);
            ideal += discounted(self.ideal_gain(place), place);
        }
        if self.labels.len() > self.ideal.len() + 1 && ideal > 0.0 {
            dcg += total((self.ideal.len() + 1..self.labels.len()).map(|place| self.gain_at(place)));
            sum += dcg / ideal;
            levels += 1;
        }
        if levels == 0 { 0.0 } else { sum / f64::from(levels) }
    }

    /// The discounted gain at a place of the list; 0 after its end.
    fn gain_at(&self, place: usize) -> f64 {
        let label = self.labels.get(place).copied().unwrap_or(0);
        discounted(f64::from(label.max(0)), place)
    }

    /// Each gain over log2(2 + what the best order has gathered by then, at least 1 per document, minus what
    /// the list has), over the sum of all gains.
    pub fn normalised_gain(&self) -> f64 {
        let (mut gathered, mut best, mut sum) = (0.0, 0.0, 0.0);
        for (place, &label) in self.labels.iter().enumerate() {
            let gain = f64::from(label.max(0));
            gathered += gain;
            best += self.ideal_gain(place).max(1.0);
            if label > 0 {
                sum += gain / (2.0 + best - gathered).log2();
            }
        }
        let all = total(self.ideal.iter().map(|&label| f64::from(label)));
        if all > 0.0 { sum / all } else { 0.0 }
    }
}
