//! Dollars and carbon of a million tokens: what they are reckoned with.

use anyhow::{Result, bail, ensure};
use perjoule_catalogue::{Assumptions, Class, Grid, Known, Region};

/// Price, region and building of a comparison.
#[derive(Debug, Clone)]
pub(crate) struct Money {
    region: &'static Region,
    usd_kwh: Known<f64>,
    pue: f64,
    pue_note: String,
    /// Prices per device and hour: of one class or device by name, or of all.
    prices: Vec<(Option<String>, f64)>,
}

/// Operator whose PUE is taken when none is given.
const OPERATOR: &str = "aws";

impl Money {
    /// What the options say.
    pub(crate) fn new(
        region: &str,
        pue: Option<f64>,
        usd_kwh: Option<f64>,
        prices: &[String],
    ) -> Result<Money> {
        let grid = Grid::builtin();
        let Some(region) = grid.region(region) else {
            let known: Vec<&str> = grid.regions.iter().map(|region| region.id.as_str()).collect();
            bail!("--region {region}: the regions are {}", known.join(", "));
        };
        if let Some(usd) = usd_kwh {
            ensure!(usd.is_finite() && usd >= 0.0, "--usd-kwh {usd}: expected dollars per kWh");
        }
        let (pue, pue_note) = match pue {
            Some(pue) => {
                ensure!(
                    pue.is_finite() && pue >= 1.0,
                    "--pue {pue}: a facility draws 1 times its machines at least"
                );
                (pue, "as given".to_owned())
            }
            None => {
                let operator = grid.operator(OPERATOR);
                let pue = operator.and_then(|operator| operator.pue.known.value().copied()).unwrap_or(1.0);
                (pue, format!("fleet of {}", operator.map_or(OPERATOR, |operator| &operator.name)))
            }
        };
        let prices = prices.iter().map(|text| price(text)).collect::<Result<_>>()?;
        let usd_kwh = usd_kwh.map_or_else(|| region.usd_kwh.known.clone(), Known::Value);
        Ok(Money { region, usd_kwh, pue, pue_note, prices })
    }

    /// The price of a row, and what it is: as given for one of its names, as given for all, or the catalogue's.
    fn price(&self, names: &[&str], class: Option<&Class>) -> (Known<f64>, String) {
        let of = |wanted: &str| names.iter().any(|name| name.to_lowercase() == wanted);
        let named = self.prices.iter().find(|(name, _)| name.as_deref().is_some_and(of));
        let given = named.or(self.prices.iter().find(|(name, _)| name.is_none()));
        match (given, class) {
            (Some((_, usd)), _) => (Known::Value(*usd), "as given".into()),
            (None, Some(class)) => (class.usd_h_device.known.clone(), class.price_note.clone()),
            (None, None) => (Known::Unknown, String::new()),
        }
    }

    /// What the costs of a row are reckoned with; `names` are what `--price` may call it.
    pub(crate) fn assumptions(&self, names: &[&str], class: Option<&Class>) -> Assumptions {
        let (usd_h_device, price_note) = self.price(names, class);
        Assumptions {
            region: self.region.name.clone(),
            gco2e_kwh: self.region.gco2e_kwh.known.clone(),
            usd_kwh: self.usd_kwh.clone(),
            operator: self.pue_note.clone(),
            pue: Known::Value(self.pue),
            usd_h_device,
            price_note,
        }
    }

    /// Names in `--price` that no row has.
    pub(crate) fn unused(&self, names: &[String]) -> Vec<&str> {
        let has = |wanted: &&str| !names.iter().any(|name| name.to_lowercase() == *wanted);
        self.prices.iter().filter_map(|(name, _)| name.as_deref()).filter(has).collect()
    }

    /// In words, for the line below a table.
    pub(crate) fn line(&self) -> String {
        format!(
            "costs: {}, {} gCO2e/kWh, {} USD/kWh, PUE {} ({}); energy outside the boundary that stands beside gCO2e is not in it; idle \
             hours and the making of the hardware are not in any",
            self.region.name, self.region.gco2e_kwh.known, self.usd_kwh, self.pue, self.pue_note
        )
    }

    /// For JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        let known = |figure: &Known<f64>| figure.value().copied();
        serde_json::json!({
            "region": self.region.id,
            "gco2e_kwh": known(&self.region.gco2e_kwh.known),
            "usd_kwh": known(&self.usd_kwh),
            "pue": self.pue,
            "pue_note": self.pue_note,
        })
    }
}

fn price(text: &str) -> Result<(Option<String>, f64)> {
    let (name, usd) = match text.rsplit_once('=') {
        Some((name, usd)) => (Some(name.trim().to_lowercase()), usd),
        None => (None, text),
    };
    match usd.trim().parse::<f64>() {
        Ok(usd) if usd.is_finite() && usd > 0.0 => Ok((name, usd)),
        _ => {
            bail!("--price {text}: expected dollars per device and hour, such as 2.5 or nvidia-h100-sxm=2.5")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_of_all_or_of_one() {
        let money = Money::new("oregon", None, None, &["2".into(), "AMD-mi300x=1.5".into()]).unwrap();
        let price = |name: &str| money.price(&[name], None).0;
        assert_eq!((price("amd-mi300x"), price("other")), (Known::Value(1.5), Known::Value(2.0)));
        let none = Money::new("oregon", Some(1.2), Some(0.1), &[]).unwrap();
        assert_eq!(none.price(&["x"], None).0, Known::Unknown);
        assert!(none.line().contains("PUE 1.2 (as given)") && none.line().contains("79 gCO2e/kWh"));
    }

    #[test]
    fn nonsense_is_refused() {
        for (region, pue, kwh, price, part) in [
            ("mars", None, None, "1", "virginia"),
            ("ohio", Some(0.9), None, "1", "--pue"),
            ("ohio", Some(f64::NAN), None, "1", "--pue"),
            ("ohio", None, Some(-1.0), "1", "--usd-kwh"),
            ("ohio", None, None, "free", "--price"),
            ("ohio", None, None, "a=1e999", "--price"),
        ] {
            let error = Money::new(region, pue, kwh, &[price.into()]).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
