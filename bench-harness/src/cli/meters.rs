//! Arguments that name meters beside the sensors of this machine; every command that takes energy has them.

use anyhow::{Result, bail, ensure};
use clap::Args;
use perjoule_meter::{Band, ExternalSource, NeuronMaximum};
use perjoule_record::Environment;
use std::path::{Path, PathBuf};

use crate::measure::energy::{Added, Meters};

#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Energy")]
pub(crate) struct MeterArgs {
    /// Meter outside this machine, such as at its wall socket: a FIFO, Unix socket or serial port with lines as
    /// bench-harness/meter/PROTOCOL.md has them; - for stdin
    #[arg(long, value_name = "PATH|-")]
    pub(crate) meter: Vec<PathBuf>,
    /// Power of one AWS Neuron device at 100 %, which AWS does not publish; joules from it are modelled
    #[arg(long, value_name = "WATTS[:LOW..HIGH]", value_parser = neuron_maximum)]
    pub(crate) neuron_watts: Option<NeuronMaximum>,
}

impl MeterArgs {
    /// Finds the meters of this machine and opens those that were named. `threads` is how many of the CPU's work.
    ///
    /// # Errors
    /// When a meter that was named cannot be used.
    pub(crate) fn discover(&self, environment: &Environment, threads: usize) -> Result<Meters> {
        for (i, path) in self.meter.iter().enumerate() {
            ensure!(!self.meter[..i].contains(path), "--meter {} is given twice", path.display());
        }
        let source = |path: &PathBuf| match path == Path::new("-") {
            true => ExternalSource::Stdin,
            false => ExternalSource::Path(path.clone()),
        };
        let added = Added { external: self.meter.iter().map(source).collect(), neuron: self.neuron_watts };
        let meters = Meters::discover(environment, threads, &added);
        if let Some(refused) = meters.refused().first() {
            bail!("--meter: {refused}");
        }
        Ok(meters)
    }
}

/// `150`, or with the 95 % band of what is known of it `150:0.8..1.2`.
fn neuron_maximum(text: &str) -> Result<NeuronMaximum, String> {
    let expected =
        || format!("expected watts such as 150, or with a band of factors 150:0.8..1.2, not {text:?}");
    let (watts, band) = text.split_once(':').map_or((text, None), |(watts, band)| (watts, Some(band)));
    let mut maximum = NeuronMaximum::new(watts.trim().parse().map_err(|_| expected())?);
    if let Some(band) = band {
        let (low, high) = band.split_once("..").ok_or_else(expected)?;
        let factor = |text: &str| text.trim().parse::<f64>().map_err(|_| expected());
        maximum.band = Band { low: factor(low)?, high: factor(high)? };
    }
    maximum.check().map_err(|error| error.to_string())?;
    Ok(maximum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_neuron_maximum_may_have_a_band() {
        assert_eq!(neuron_maximum("150").unwrap(), NeuronMaximum::new(150.0));
        let banded = neuron_maximum("150:0.8..1.2").unwrap();
        assert_eq!((banded.watts, banded.band), (150.0, Band { low: 0.8, high: 1.2 }));
        for text in ["", "x", "0", "-5", "nan", "150:", "150:0.8", "150:1.2..0.8", "150:0..1"] {
            assert!(neuron_maximum(text).is_err(), "{text}");
        }
    }
}
