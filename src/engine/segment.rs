//! A stretch of a step that a device may record and replay.

/// A fixed sequence of operations of a model, which a device may record and replay. Equal segments
/// make the same calls with the same buffers and settings; packs and their counts may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Segment {
    pub name: &'static str,
    /// Encoder layer, where it belongs to one.
    pub layer: usize,
    /// Which of its optional operations it contains.
    pub variant: u32,
}
