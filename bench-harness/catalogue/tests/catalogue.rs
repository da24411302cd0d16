//! The embedded data are sound, and files of the user's own are read or refused with one clear error.

use perjoule_catalogue::{Catalogue, Dtype, Grid, Known, LookupError, ModelShape, Row, WhyNot};

#[test]
fn every_number_has_sources() {
    let catalogue = Catalogue::builtin();
    assert!(catalogue.classes().len() >= 44);
    for class in catalogue.classes() {
        for (name, figure) in class.figures() {
            let known = !matches!(figure.known, Known::Unknown);
            let sources = if figure.src.is_empty() { &class.src } else { &figure.src };
            assert!(!known || !sources.is_empty(), "{} {name} has no source", class.id);
            for source in sources {
                assert!(catalogue.source(source).is_some_and(|text| text.len() > 10), "{source}");
            }
        }
        assert!(!class.family.is_empty(), "{}", class.id);
    }
}

#[test]
fn conflicts_and_gaps_are_values() {
    let catalogue = Catalogue::builtin();
    let get = |id: &str| catalogue.get(id).unwrap();
    assert_eq!(get("nvidia-gb200-nvl72").peak.f32.known, Known::Conflict { values: vec![90.0, 75.0] });
    assert_eq!(get("nvidia-h100-sxm").peak.fp4.known, Known::Unsupported);
    assert_eq!(get("aws-trainium2").tdp_w.known, Known::Unknown);
    let mi325x = &get("amd-mi325x").tdp_w;
    assert_eq!((mi325x.known.value(), mi325x.trust.is_some()), (Some(&1000.0), true));
    assert!(mi325x.note.as_deref().unwrap().contains("750"));
    assert_eq!(Known::Conflict { values: vec![1.0, 2.0] }.to_string(), "conflict: 1 or 2");
}

#[test]
fn peaks_and_bandwidths_are_plausible() {
    // a number that lost or won a digit, or was doubled by sparsity
    for class in Catalogue::builtin().classes() {
        if let (Some(bf16), Some(fp8)) = (class.peak.bf16.known.upper(), class.peak.fp8.known.upper()) {
            assert!((0.9..=4.1).contains(&(fp8 / bf16)), "{}: fp8 {fp8}, bf16 {bf16}", class.id);
        }
        if let (Some(peak), Some(bandwidth)) = (class.peak.bf16.known.upper(), class.mem_gbs.known.upper()) {
            let intensity = peak * 1e3 / bandwidth;
            assert!((50.0..1300.0).contains(&intensity), "{}: {intensity} FLOP a byte", class.id);
        }
        if let (Some(peak), Some(tdp)) = (class.peak.bf16.known.upper(), class.tdp_w.known.upper()) {
            assert!((0.3..3.0).contains(&(peak / tdp)), "{}: {} TFLOP/s a watt", class.id, peak / tdp);
        }
    }
}

#[test]
fn lookup_by_fragments_suggests() {
    let catalogue = Catalogue::builtin();
    let id = |query: &str| catalogue.find(query).map(|class| class.id.clone());
    assert_eq!(id("NVIDIA H100 SXM5 80GB").unwrap(), "nvidia-h100-sxm");
    assert_eq!(id("h100 pcie").unwrap(), "nvidia-h100-pcie");
    assert_eq!(id("h200-sxm").unwrap(), "nvidia-h200-sxm");
    assert_eq!(id("trillium").unwrap(), "google-tpu-v6e");
    assert_eq!(id("l4").unwrap(), "nvidia-l4");
    match id("mi30x").unwrap_err() {
        LookupError::NotFound { suggestions, .. } => assert_eq!(suggestions[0], "amd-mi300x"),
        other => panic!("{other}"),
    }
    match id("a100").unwrap_err() {
        LookupError::Ambiguous { candidates, .. } => assert_eq!(candidates.len(), 2),
        other => panic!("{other}"),
    }
    assert!(id("").is_err());
}

#[test]
fn own_classes_extend_and_override() {
    let mut catalogue = Catalogue::builtin();
    let text = r#"
        [sources]
        sheet = "our data sheet"
        [[hardware]]
        id = "our-chip"
        name = "Our Chip"
        peak = { bf16 = 500, fp8 = { conflict = [900, 1000], note = "draft" } }
        mem_gb = 64
        mem_gbs = 2000
        src = ["sheet"]
        trust = "A"
        [[hardware]]
        id = "nvidia-l4"
        name = "L4 in our case"
        mem_gbs = { value = 290, src = ["sheet"], trust = "A" }
        src = ["l4"]
    "#;
    let extended = catalogue.extend_from_toml(text, "ours.toml").unwrap();
    assert_eq!(extended.added, ["our-chip"]);
    assert_eq!(extended.replaced, [("nvidia-l4".to_string(), "built in".to_string())]);
    assert_eq!(catalogue.find("our chip").unwrap().mem_gbs.known, Known::Value(2000.0));
    assert_eq!(catalogue.get("nvidia-l4").unwrap().origin, "ours.toml");
}

#[test]
fn a_wrong_file_gets_one_clear_error_and_changes_nothing() {
    let entry = |fields: &str| format!("[[hardware]]\nid = \"x\"\nname = \"X\"\n{fields}\n");
    let cases = [
        (entry("mem_gb = -3"), "mine:4: `mem_gb`: -3 is not a positive number"),
        (
            entry("mem_gbs = \"lots\""),
            "mine:4: `mem_gbs`: invalid value: string \"lots\", expected a positive number",
        ),
        (entry("peak = { bf16 = 1, fp8 = true }"), "mine:4: `fp8`: invalid type: boolean"),
        (entry("peek = { bf16 = 1 }"), "mine:4: unknown field `peek`"),
        (entry("tdp_w = { conflict = [1] }"), "mine:4: `tdp_w`: a conflict has two values"),
        (entry("src = [\"nowhere\"]"), "mine:4: `src`: `nowhere` is not in [sources]"),
        (entry("trust = \"D\""), "mine:4: `trust`: unknown variant `D`"),
        (entry("id = \"y\""), "mine:4: "),
        (entry("") + &entry(""), "mine:2: `id`: `x` is there twice"),
        (entry("").replace("\"x\"", "\"X 1\""), "mine:2: `id`: `X 1` is not lower case"),
        (format!("schema = \"other/9\"\n{}", entry("")), "mine:1: `schema`: this version reads"),
        ("[[hardware]]\nid = \"x\"\n".into(), "mine:1: missing field `name`"),
    ];
    for (text, expected) in cases {
        let mut catalogue = Catalogue::builtin();
        let error = catalogue.extend_from_toml(&text, "mine").unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}\ninstead of {expected}");
        assert!(!error.contains('\n'), "{error}");
        assert_eq!(catalogue, Catalogue::builtin());
    }
}

#[test]
fn every_published_row_is_used_or_has_its_reason() {
    let catalogue = Catalogue::builtin();
    let rows = Row::published();
    assert!(rows.len() >= 97);
    for row in rows.iter().chain(&Row::held_out()) {
        assert!(row.source.len() > 10 && row.tokens_per_s > 0.0);
        let (class, _) = row.workload(&catalogue).unwrap();
        assert_eq!(row.watts.is_some(), row.boundary.is_some());
        let unusable = row.watts.is_some() && class.tdp_w.known.upper().is_none();
        assert_eq!(unusable, !row.excluded_power.is_empty(), "{} {}", row.class, row.model);
        let columns = ["dtype", "kv_dtype", "n_parallel", "n_prompt", "n_gen"];
        assert!(row.assumed.split_whitespace().all(|column| columns.contains(&column)), "{}", row.assumed);
        assert!(row.n_parallel.is_some() || row.assumed.contains("n_parallel"), "{}", row.source);
    }
    // no row of calibration is among those held out
    for row in Row::held_out() {
        assert!(!rows.iter().any(|seen| {
            let near = (seen.tokens_per_s / row.tokens_per_s - 1.0).abs() < 1e-4;
            seen.class == row.class && seen.devices == row.devices && seen.model == row.model && near
        }));
    }
}

#[test]
fn no_published_row_breaks_its_roof() {
    let catalogue = Catalogue::builtin();
    for row in Row::published().iter().filter(|row| row.excluded.is_empty()).chain(&Row::held_out()) {
        let (class, load) = row.workload(&catalogue).unwrap();
        match perjoule_catalogue::predict(class, row.devices, &load) {
            Ok(p) => {
                // sequences that choose the same experts stream less than independent choices would, which the roof takes
                let slack = if load.model.active_params < load.model.params { 1.02 } else { 1.0 };
                let text = format!("{} {}: {} > {}", row.class, row.model, row.tokens_per_s, p.roof);
                assert!(row.tokens_per_s <= p.roof * slack, "{text}");
            }
            Err(why) => assert!(matches!(why, WhyNot::DoesNotFit { .. }), "{why}"),
        }
    }
}

#[test]
fn what_submissions_declare_cannot_have_been_run() {
    // the measurements files of these MLPerf rows say fp16 weights; the rates are beyond what fp16 can do, hence the assumed formats
    let catalogue = Catalogue::builtin();
    for id in ["nvidia-b200-hgx", "nvidia-h200-sxm-cts"] {
        let mut rows =
            Row::published().into_iter().filter(|row| row.class == id && row.model == "llama-2-70b");
        let mut row = rows.next().unwrap();
        assert!(row.assumed.contains("dtype"));
        (row.dtype, row.kv_dtype) = (Dtype::F16, Dtype::F16);
        let (class, load) = row.workload(&catalogue).unwrap();
        let roof = perjoule_catalogue::predict(class, row.devices, &load).unwrap().roof;
        assert!(row.tokens_per_s > roof, "{id}: {} within {roof}", row.tokens_per_s);
    }
}

#[test]
fn grid_and_shapes_are_read() {
    let grid = Grid::builtin();
    for region in &grid.regions {
        assert!(!region.src.is_empty() && region.src.iter().all(|key| grid.sources.contains_key(key)));
        assert!(region.gco2e_kwh.known.value().is_some() || region.usd_kwh.known.value().is_some());
    }
    for operator in &grid.operators {
        assert!(operator.pue.known.value().is_some_and(|pue| (1.0..2.0).contains(pue)));
    }
    assert!(ModelShape::builtin().len() >= 18);
}
