//! Predicted throughput, power and energy, each with a 90 % band.

use crate::class::{Catalogue, Class, conflicting};
use crate::fit::{self, Clusters, Effect, Effects, PowerCurve, PowerSample, Sample, Weights};
use crate::published::{Boundary, Row};
use crate::workload::{Dtype, Limit, Terms, WhyNot, Workload};
use std::sync::OnceLock;

/// A value with the band that covers nine of ten new measurements like it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The value: the median.
    pub value: f64,
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

impl Estimate {
    fn around(value: f64, log_half: f64) -> Estimate {
        Estimate { value, low: value * libm::exp(-log_half), high: value * libm::exp(log_half) }
    }

    /// Value and band times a constant.
    pub fn times(self, factor: f64) -> Estimate {
        Estimate { value: self.value * factor, low: self.low * factor, high: self.high * factor }
    }

    /// One over it.
    pub fn inverse(self) -> Estimate {
        Estimate { value: 1.0 / self.value, low: 1.0 / self.high, high: 1.0 / self.low }
    }

    /// Whether a value lies in the band.
    pub fn contains(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }

    /// The factor by which the band reaches from the value to its further end.
    pub fn width(&self) -> f64 {
        (self.high / self.value).max(self.value / self.low)
    }
}

/// Watts and joules within one boundary.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Power {
    /// Watts of all devices together.
    pub watts: Estimate,
    /// Joules per token: watts over tokens/s.
    pub joules_per_token: Estimate,
}

/// What a class of hardware will do with a workload.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// Tokens/s of all devices together.
    pub tokens_per_s: Estimate,
    /// Power of the accelerator boards, or of the package where the class is a processor. None where the TDP is not known.
    pub board: Option<Power>,
    /// Power of the machine around them, at the wall.
    pub wall: Option<Power>,
    /// The lower roof.
    pub limit: Limit,
    /// Tokens/s at the roof: full bandwidth or peak, everything overlapped. With routed experts it streams those that independent
    /// choices touch; sequences that agree in their choices stream less.
    pub roof: f64,
    /// `tokens_per_s` over `roof`.
    pub share_of_roof: f64,
    /// Share of the time that is neither traffic nor arithmetic: launches, collectives, the host.
    pub overhead: f64,
    /// What the prediction was calibrated from, in words.
    pub calibration: String,
    /// What else must be known.
    pub notes: Vec<String>,
}

/// How wide bands are: factors of the standard deviation for a class with rows of its own and for one without.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Factors {
    known: f64,
    new: f64,
}

impl Factors {
    fn of(&self, own: usize) -> f64 {
        if own > 0 { self.known } else { self.new }
    }
}

/// From boards to the wall: a factor and the standard deviation of its logarithm.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Wall {
    log_factor: f64,
    sd: f64,
    /// The smallest TDP of all boards together that it was seen at.
    least_tdp: f64,
}

/// Everything that is fitted but the width of bands.
#[derive(Debug, Clone, PartialEq)]
struct Core {
    weights: Weights,
    rates: Effects,
    curve: PowerCurve,
    powers: Effects,
    wall: Wall,
}

/// What covers nine of ten values of a normal distribution, in standard deviations.
const NORMAL: f64 = 1.645;
/// Least standard deviation of the step from boards to the wall: hosts, fans and supplies differ, and a handful of rows cannot show it.
const LEAST_WALL_SD: f64 = 0.15;

impl Core {
    fn fit(samples: &[&Sample]) -> Core {
        Core::effects(fit::fit_weights(samples), PowerCurve::fit(samples), samples)
    }

    /// The effects of classes beside weights and a curve that are fitted already.
    fn effects(weights: Weights, curve: PowerCurve, samples: &[&Sample]) -> Core {
        let rates = Effects::new(samples.iter().map(|s| {
            let residual = s.log_rate + libm::log(fit::seconds(&weights, &s.terms));
            (s.class.as_str(), s.family.as_str(), u8::from(s.prefill), residual)
        }));
        let residual = |s: &Sample, p: PowerSample| {
            p.log_share - libm::log(curve.share(libm::exp(s.log_rate), &s.terms))
        };
        let of = |wall: bool| {
            samples.iter().filter_map(move |s| {
                s.power
                    .filter(|p| p.wall == wall)
                    .map(|p| (s.class.as_str(), s.family.as_str(), 0, residual(s, p)))
            })
        };
        let powers = Effects::new(of(false));
        let steps: Vec<f64> =
            of(true).map(|(class, family, regime, r)| r - powers.of(class, family, regime).shift).collect();
        let n = steps.len().max(1) as f64;
        let log_factor = steps.iter().sum::<f64>() / n;
        let variance =
            steps.iter().map(|s| (s - log_factor) * (s - log_factor)).sum::<f64>() / (n - 1.0).max(1.0);
        let tdps = samples.iter().filter_map(|s| s.power.filter(|p| p.wall).map(|p| p.tdp));
        let wall = Wall {
            // a machine draws no less than its boards
            log_factor: log_factor.max(0.0),
            sd: libm::sqrt(variance).max(LEAST_WALL_SD),
            least_tdp: tdps.fold(f64::INFINITY, f64::min),
        };
        Core { weights, rates, curve, powers, wall }
    }

    fn at(&self, class: &str, family: &str, prefill: bool, terms: &Terms) -> At {
        let effect = self.rates.of(class, family, u8::from(prefill));
        let roof = 1.0 / terms.roof().0;
        let rate = (libm::exp(effect.shift) / fit::seconds(&self.weights, terms)).min(roof);
        let power = self.powers.of(class, family, 0);
        let share = (self.curve.share(rate, terms) * libm::exp(power.shift)).min(1.0);
        At { rate, effect, share, power }
    }
}

/// What a core says of one workload.
struct At {
    /// Tokens/s, not above the roof.
    rate: f64,
    /// The effect of the class on them.
    effect: Effect,
    /// Watts of boards over their TDP, at that rate.
    share: f64,
    /// The effect of the class on those.
    power: Effect,
}

impl At {
    fn joules_sd(&self) -> f64 {
        libm::hypot(self.effect.sd, self.power.sd)
    }
}

/// Every cluster of samples with the samples that are not in it.
fn apart<'a>(
    samples: &[&'a Sample],
    key: impl Fn(&'a Sample) -> (&'a str, &'a str),
) -> Vec<(Vec<&'a Sample>, Vec<&'a Sample>)> {
    let mut keys: Vec<_> = samples.iter().map(|s| key(s)).collect();
    keys.sort_unstable();
    keys.dedup();
    keys.into_iter().map(|k| samples.iter().partition(|s| key(s) == k)).collect()
}

/// Errors on rows that were left out, over the standard deviation that was claimed.
#[derive(Default)]
struct Errors {
    rate: Clusters,
    watts: Clusters,
    joules: Clusters,
}

impl Errors {
    fn push(&mut self, core: &Core, cluster: &[&Sample]) {
        let (mut rate, mut watts, mut joules) = (Vec::new(), Vec::new(), Vec::new());
        for s in cluster {
            let at = core.at(&s.class, &s.family, s.prefill, &s.terms);
            let of_rate = s.log_rate - libm::log(at.rate);
            rate.push(of_rate.abs() / at.effect.sd);
            // the step to the wall has a spread of its own, so rows at the wall say nothing about the band of boards
            if let Some(p) = s.power.filter(|p| !p.wall) {
                let of_watts = p.log_share - libm::log(at.share);
                watts.push(of_watts.abs() / at.power.sd);
                joules.push((of_watts - of_rate).abs() / at.joules_sd());
            }
        }
        self.rate.push(&rate);
        self.watts.push(&watts);
        self.joules.push(&joules);
    }
}

/// The calibrated model.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    core: Core,
    rate: Factors,
    watts: f64,
    joules: f64,
}

impl Model {
    /// The model calibrated from the published rows that come with the crate, once per process.
    pub fn builtin() -> &'static Model {
        static BUILTIN: OnceLock<Model> = OnceLock::new();
        BUILTIN.get_or_init(|| Model::calibrate(&Catalogue::builtin(), &Row::published()))
    }

    /// A model calibrated from rows. Rows that are excluded, or whose class or shape the catalogue has not, are left out.
    pub fn calibrate(catalogue: &Catalogue, rows: &[Row]) -> Model {
        let samples: Vec<Sample> =
            rows.iter().filter_map(|row| sample(catalogue, row).ok().flatten()).collect();
        Model::from_samples(&samples.iter().collect::<Vec<_>>())
    }

    /// Bands are as wide as the errors that the model makes on rows it was not shown: on all rows of a class that is left out, for
    /// classes without rows; on all rows of one model on a class, for the others.
    fn from_samples(samples: &[&Sample]) -> Model {
        let core = Core::fit(samples);
        let mut far = Errors::default();
        for (out, rest) in apart(samples, |s| (s.class.as_str(), "")) {
            far.push(&Core::fit(&rest), &out);
        }
        let mut near = Errors::default();
        for (out, rest) in apart(samples, |s| (s.class.as_str(), s.model.as_str())) {
            // one model on one class hardly moves what all classes share
            near.push(&Core::effects(core.weights, core.curve, &rest), &out);
        }
        // power is published for few classes: what is known of errors within and between them is put together
        near.watts.append(far.watts);
        near.joules.append(far.joules);
        Model {
            core,
            rate: Factors { known: near.rate.factor(), new: far.rate.factor() },
            watts: near.watts.factor(),
            joules: near.joules.factor(),
        }
    }

    /// Predicts a workload on a number of devices of a class.
    ///
    /// # Errors
    ///
    /// Why there is no prediction: it does not fit, a figure is not known, the workload makes no sense.
    pub fn predict(&self, class: &Class, devices: u32, load: &Workload) -> Result<Prediction, WhyNot> {
        let terms = Terms::new(class, devices, load)?;
        let prefill = load.phase == crate::Phase::Prefill;
        let At { rate, effect, share, power } = self.core.at(&class.id, &class.family, prefill, &terms);
        let (roof_seconds, limit) = terms.roof();
        let roof = 1.0 / roof_seconds;
        let mut tokens_per_s = Estimate::around(rate, self.rate.of(effect.own) * effect.sd);
        tokens_per_s.high = tokens_per_s.high.min(roof);

        let tdp = class.tdp_w.known.upper().map(|tdp| tdp * f64::from(devices));
        let watts_half = self.watts * power.sd;
        let joules_half = self.joules * libm::hypot(effect.sd, power.sd);
        let board = tdp.map(|tdp| {
            let mut watts = Estimate::around(tdp * share, watts_half);
            watts.high = watts.high.min(tdp);
            Power { watts, joules_per_token: Estimate::around(watts.value / rate, joules_half) }
        });
        let wall = board.map(|board| {
            let Wall { log_factor, sd, .. } = self.core.wall;
            let watts = board.watts.value * libm::exp(log_factor);
            let half = |own: f64| libm::hypot(own, NORMAL * sd);
            let mut wall = Power {
                watts: Estimate::around(watts, half(watts_half)),
                joules_per_token: Estimate::around(watts / rate, half(joules_half)),
            };
            wall.watts.low = wall.watts.low.max(board.watts.low);
            wall.joules_per_token.low = wall.joules_per_token.low.max(board.joules_per_token.low);
            wall
        });

        let parts = fit::parts(&self.core.weights, &terms);
        let total: f64 = parts.iter().sum();
        let overhead = (parts[3] + parts[4]) / total;
        Ok(Prediction {
            tokens_per_s,
            board,
            wall,
            limit,
            roof,
            share_of_roof: rate / roof,
            overhead,
            calibration: in_words(class, prefill, effect),
            notes: {
                let mut notes = notes(class, load, &terms, overhead, tdp.is_none());
                let least = self.core.wall.least_tdp;
                if tdp.is_some_and(|tdp| tdp < least) {
                    notes.push(format!(
                        "power at the wall is extrapolated: it was published for machines with {least:.0} W of boards or more, and \
                         the rest of a machine does not shrink with them"
                    ));
                }
                notes
            },
        })
    }
}

/// Predicts with [`Model::builtin`].
///
/// # Errors
///
/// As [`Model::predict`].
pub fn predict(class: &Class, devices: u32, load: &Workload) -> Result<Prediction, WhyNot> {
    Model::builtin().predict(class, devices, load)
}

fn in_words(class: &Class, prefill: bool, effect: Effect) -> String {
    let what = if prefill { "prefill" } else { "generation" };
    let plural = |n: usize, one: &str, many: &str| format!("{n} {}", if n == 1 { one } else { many });
    let rows = plural(effect.own, "row", "rows");
    let relatives = plural(effect.relatives, "other class", "other classes");
    match (effect.own, effect.relatives) {
        (0, 0) => {
            format!("pooled over all classes: no published row of {what} is of this class or its family")
        }
        (0, _) => format!("family {}: {relatives} with rows of {what}, none of this class", class.family),
        (_, 0) => format!("class: {rows} of {what}, shrunk to the mean of all classes"),
        _ => format!("class: {rows} of {what}, shrunk to the family {} ({relatives})", class.family),
    }
}

fn notes(class: &Class, load: &Workload, terms: &Terms, overhead: f64, no_tdp: bool) -> Vec<String> {
    let mut notes = Vec::new();
    if no_tdp {
        notes.push(format!("no power or energy: the TDP of {} is {}", class.id, class.tdp_w.known));
    }
    if class.mem_gb.known.upper().is_none() {
        notes.push(format!(
            "whether it fits is not checked: memory of {} is {}",
            class.id, class.mem_gb.known
        ));
    }
    for (name, figure) in class.figures().into_iter().filter(|(_, figure)| conflicting(figure)) {
        if ["mem_gb", "mem_gbs", "tdp_w"].contains(&name) || name == format!("peak.{}", terms.peak) {
            notes.push(format!("sources disagree on {name} ({}); the largest is taken", figure.known));
        }
    }
    let native = match load.dtype {
        Dtype::F32 => "f32",
        Dtype::Bf16 | Dtype::F16 => "bf16",
        Dtype::Fp8 => "fp8",
        Dtype::Int8 => "int8",
        Dtype::Mxfp4 | Dtype::Nvfp4 => "fp4",
        Dtype::Int4 | Dtype::Q4_0 | Dtype::Q4KM => terms.peak,
    };
    if terms.peak != native {
        notes.push(format!("the roof of compute is that of {}: none is known for {native}", terms.peak));
    }
    if overhead > 0.5 {
        notes.push(format!(
            "{:.0} % of the time is overhead of launches, collectives and the host; software moves this more than hardware",
            overhead * 100.0
        ));
    }
    notes
}

/// A row as the fit sees it; none where it is excluded.
fn sample(catalogue: &Catalogue, row: &Row) -> Result<Option<Sample>, String> {
    if !row.excluded.is_empty() {
        return Ok(None);
    }
    let (class, load) = row.workload(catalogue)?;
    let terms = Terms::new(class, row.devices, &load).map_err(|why| why.to_string())?;
    let tdp = class.tdp_w.known.upper().map(|tdp| tdp * f64::from(row.devices));
    let power = row.watts.zip(row.boundary).zip(tdp).filter(|_| row.excluded_power.is_empty());
    Ok(Some(Sample {
        class: class.id.clone(),
        family: class.family.clone(),
        model: row.model.clone(),
        prefill: row.phase == crate::Phase::Prefill,
        terms,
        log_rate: libm::log(row.tokens_per_s),
        power: power.map(|((watts, boundary), tdp)| PowerSample {
            log_share: libm::log(watts / tdp),
            tdp,
            wall: boundary != Boundary::Board,
        }),
    }))
}
