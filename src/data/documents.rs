//! Samples without a query: each document of a log by itself, for masked-language modelling alone.

use std::sync::Arc;

use super::batch::Batch;
use super::click_log::ClickLog;
use super::source::SampleSource;
use crate::{Error, Result};

/// Documents alone, `[CLS] document [SEP]`, segment 0, cut to `max_tokens`; sample id = document.
pub struct DocumentSource {
    log: Arc<dyn ClickLog>,
    max_tokens: usize,
}

impl DocumentSource {
    /// # Errors
    /// `Error::Config` when `max_tokens` leaves no room for text, `Error::Data` without documents.
    pub fn new(log: Arc<dyn ClickLog>, max_tokens: usize) -> Result<Self> {
        if max_tokens < 3 {
            return Err(Error::config(format!("[data] max_tokens = {max_tokens}: must be at least 3")));
        }
        if log.documents() == 0 {
            return Err(Error::data("the shards hold no documents: nothing to train on"));
        }
        Ok(Self { log, max_tokens })
    }
}

impl SampleSource for DocumentSource {
    fn samples(&self) -> u32 {
        self.log.documents()
    }

    fn length(&self, sample: u32, _epoch: u32) -> usize {
        self.log.document_len(sample).min(self.max_tokens - 2) + 2
    }

    fn pairs(&self, _sample: u32) -> usize {
        0
    }

    fn push(&self, sample: u32, _epoch: u32, batch: &mut Batch) -> Result<()> {
        let mut text = Vec::with_capacity(self.max_tokens);
        self.log.extend_document(sample, &mut text, self.max_tokens - 2);
        batch.push(self.log.special(), sample, &text, None);
        Ok(())
    }
}
