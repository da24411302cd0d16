//! Published throughput and energy, as rows with typed columns.

use crate::class::{Catalogue, Class};
use crate::workload::{Dtype, ModelShape, Phase, Stack, Workload};
use serde::Deserialize;

const PUBLISHED: &str = include_str!("../data/published.csv");
const HELD_OUT: &str = include_str!("../data/heldout.csv");

/// What a published power covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Boundary {
    /// The accelerator boards alone.
    Board,
    /// The whole machine at the wall, averaged.
    Wall,
    /// The whole machine at the wall, highest reading: an upper bound that steady generation comes close to.
    WallPeak,
}

/// One published row.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Id of the class.
    pub class: String,
    /// How many devices.
    pub devices: u32,
    /// Id of the model's shape.
    pub model: String,
    /// Format of the weights.
    pub dtype: Dtype,
    /// Format of the KV cache.
    pub kv_dtype: Dtype,
    /// What was run.
    pub phase: Phase,
    /// Whether the software was tuned to the benchmark.
    pub stack: Stack,
    /// Sequences at once; none where the source does not say.
    pub n_parallel: Option<f64>,
    /// Prompt tokens per sequence.
    pub n_prompt: u32,
    /// Generated tokens per sequence.
    pub n_gen: u32,
    /// Tokens/s of all devices together: generated ones, prompt ones in a prefill.
    pub tokens_per_s: f64,
    /// Watts of all devices together.
    pub watts: Option<f64>,
    /// What the watts cover.
    pub boundary: Option<Boundary>,
    /// Columns that the source does not state, separated by spaces.
    pub assumed: String,
    /// Why the row is not used; empty where it is.
    pub excluded: String,
    /// Why its power is not used; empty where it is.
    pub excluded_power: String,
    /// Where it was published.
    pub source: String,
}

impl Row {
    /// The published rows that the model is calibrated from.
    pub fn published() -> Vec<Row> {
        read(PUBLISHED)
    }

    /// Rows that calibration never sees, from the ML.ENERGY leaderboard and a table of llama.cpp: what predictions are tested against.
    pub fn held_out() -> Vec<Row> {
        read(HELD_OUT)
    }

    /// What the row ran. Where the source does not say how many sequences, as many as memory holds.
    ///
    /// # Errors
    ///
    /// The class or shape that the row names and that is not there.
    pub fn workload<'a>(&self, catalogue: &'a Catalogue) -> Result<(&'a Class, Workload), String> {
        let class = catalogue.get(&self.class).ok_or_else(|| format!("no class {}", self.class))?;
        let model =
            *ModelShape::builtin().get(&self.model).ok_or_else(|| format!("no shape {}", self.model))?;
        let mut load = Workload {
            model,
            dtype: self.dtype,
            kv_dtype: self.kv_dtype,
            phase: self.phase,
            stack: self.stack,
            n_parallel: 1.0,
            n_prompt: self.n_prompt,
            n_gen: self.n_gen,
        };
        load.n_parallel = self.n_parallel.unwrap_or_else(|| load.largest_batch(class, self.devices));
        Ok((class, load))
    }
}

fn read(text: &str) -> Vec<Row> {
    csv::Reader::from_reader(text.as_bytes())
        .deserialize()
        .map(|row| match row {
            Ok(row) => row,
            // a test reads the embedded files
            Err(error) => unreachable!("embedded rows: {error}"),
        })
        .collect()
}
