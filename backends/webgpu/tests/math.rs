//! The functions of `common/math.wgsl` and `common/exact.wgsl` against f64, on the first adapter that is there. Without one every test says
//! so and passes.

use perjoule_kernels::Device;
use perjoule_kernels::op::Activation;
use perjoule_shaders::wgsl;
use perjoule_webgpu::WebGpuDevice;
use perjoule_webgpu::memory::USAGES;

/// Results of a function of two numbers, written as an expression of `x` and `y`, for every pair.
fn evaluate(device: &WebGpuDevice, expression: &str, pairs: &[[f32; 2]]) -> Vec<f32> {
    evaluate_with(device, expression, wgsl::EXACT.text, pairs)
}

/// The same behind another text of `common/exact.wgsl`.
fn evaluate_with(device: &WebGpuDevice, expression: &str, exact: &str, pairs: &[[f32; 2]]) -> Vec<f32> {
    let gpu = device.device();
    let text = format!(
        "{}{}{}{}
@group(0) @binding(0) var<storage, read> pairs: array<vec2<f32>>;
@group(0) @binding(1) var<storage, read_write> results: array<f32>;
@group(0) @binding(2) var<uniform> offsets: array<vec4<u32>, 6>;
@compute @workgroup_size(64)
fn evaluate(@builtin(global_invocation_id) id: vec3<u32>) {{
    if id.x < arrayLength(&results) {{
        let x = pairs[id.x].x;
        let y = pairs[id.x].y;
        results[id.x] = {expression};
    }}
}}",
        wgsl::ELEMENT.text,
        wgsl::LAYOUT.text,
        wgsl::MATH.text,
        exact,
    );
    let module = gpu.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: Some(expression),
        source: wgpu::ShaderSource::Wgsl(text.into()),
    });
    let pipeline = gpu.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(expression),
        layout: None,
        module: &module,
        entry_point: Some("evaluate"),
        compilation_options: Default::default(),
        cache: None,
    });
    let buffer = |size: u64, usage| {
        gpu.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false })
    };
    let mut stream = device.stream().unwrap();
    let count = pairs.len() as u64;
    let (input, output) = (buffer(8 * count, USAGES), buffer(4 * count, USAGES));
    let bytes: Vec<u8> = pairs.iter().flatten().flat_map(|x| x.to_le_bytes()).collect();
    stream.write(&device.wrap(input.clone()).unwrap(), &bytes).unwrap();
    let zeros = buffer(96, wgpu::BufferUsages::UNIFORM);
    let bound = [&input, &output, &zeros];
    let entries: Vec<_> = bound
        .iter()
        .enumerate()
        .map(|(i, b)| wgpu::BindGroupEntry { binding: i as u32, resource: b.as_entire_binding() })
        .collect();
    let group = gpu.create_bind_group(&wgpu::BindGroupDescriptor {
        label: None,
        layout: &pipeline.get_bind_group_layout(0),
        entries: &entries,
    });
    let mut encoder = gpu.create_command_encoder(&Default::default());
    {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &group, &[]);
        pass.dispatch_workgroups(pairs.len().div_ceil(64) as u32, 1, 1);
    }
    device.queue().submit([encoder.finish()]);
    let read = stream.read(&device.wrap(output).unwrap()).wait().unwrap();
    read.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn open() -> Option<WebGpuDevice> {
    WebGpuDevice::open(0).inspect_err(|error| eprintln!("ignored: {error}")).ok()
}

/// `count` numbers from `low` to `high`.
fn grid(low: f64, high: f64, count: usize) -> Vec<f32> {
    (0..count).map(|i| (low + (high - low) * i as f64 / (count - 1) as f64) as f32).collect()
}

/// The largest error of `expression` over a grid, as a multiple of `allowed(x, exact)`.
fn worst(
    device: &WebGpuDevice,
    expression: &str,
    xs: &[f32],
    exact: impl Fn(f64) -> f64,
    allowed: impl Fn(f64, f64) -> f64,
) -> f64 {
    let pairs: Vec<[f32; 2]> = xs.iter().map(|&x| [x, 0.0]).collect();
    let got = evaluate(device, expression, &pairs);
    let mut worst: (f64, f32, f32) = (0.0, 0.0, 0.0);
    for (&x, &got) in xs.iter().zip(&got) {
        let want = exact(f64::from(x));
        // what lies below the normal range may be 0
        let floor = f64::from(f32::MIN_POSITIVE);
        let off = (f64::from(got) - want).abs();
        let share = if off <= floor { 0.0 } else { (off - floor) / allowed(f64::from(x), want) };
        if share > worst.0 || share.is_nan() {
            worst = (share, x, got);
        }
    }
    eprintln!("{expression}: {:.3} of what is allowed, at {:e}: {:e}", worst.0, worst.1, worst.2);
    worst.0
}

/// A unit in the last place of f32, relative.
const UNIT: f64 = 1.0 / (1u64 << 23) as f64;

#[test]
fn functions_are_right_to_a_few_units_in_the_last_place() {
    let Some(device) = open() else { return };
    let everywhere: Vec<f32> = [
        grid(-87.3, 88.7, 20_001),
        grid(-4.0, 4.0, 20_001),
        grid(-1e-3, 1e-3, 999),
        vec![0.0, 1e-30, -1e-30],
    ]
    .concat();
    let positive: Vec<f32> = [grid(0.0, 9.0, 20_001), grid(0.0, 1.0, 5_001)].concat();
    let erf = |x: f64| libm::erf(x);
    let relative = |units: f64| move |_: f64, want: f64| units * UNIT * want.abs();
    // the error of an exponential's argument, rounded, is one of the result
    let scaled = |units: f64| move |x: f64, want: f64| units * UNIT * want.abs() * (1.0 + x.abs());
    let found = [
        worst(&device, "exp_of(x)", &everywhere, f64::exp, relative(3.0)),
        worst(&device, "tanh_of(x)", &everywhere, f64::tanh, relative(4.0)),
        worst(&device, "erf_of(x)", &everywhere, erf, relative(4.0)),
        worst(&device, "erfc_of(x)", &positive, libm::erfc, |x, want| (4.0 + x * x) * UNIT * want.abs()),
        worst(&device, "silu(x)", &everywhere, |x| Activation::Silu.apply(x), relative(6.0)),
        worst(
            &device,
            "swish(x, 1.702)",
            &grid(-50.0, 50.0, 20_001),
            |x| x / (1.0 + (-1.702f32 as f64 * x).exp()),
            scaled(2.0),
        ),
        worst(
            &device,
            "gelu(x)",
            &everywhere,
            |x| Activation::Gelu.apply(x),
            |x, want| {
                // far below 0 the reference itself cancels
                UNIT * (want.abs() * (4.0 + x * x) + x.abs() * 1e-9)
            },
        ),
        worst(
            &device,
            "gelu_tanh(x)",
            &everywhere,
            |x| Activation::GeluTanh.apply(x),
            |x, want| UNIT * (want.abs() * (4.0 + 2.0 * x.abs().powi(3)) + x.abs() * 1e-9),
        ),
    ];
    assert!(found.iter().all(|&share| share <= 1.0), "{found:?}");
}

#[test]
fn ends_of_ranges_and_what_is_no_number() {
    let Some(device) = open() else { return };
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let xs = [inf, -inf, nan, 88.8, -88.0, -1e30, 1e30, 0.0];
    let pairs = xs.map(|x| [x, 0.0]);
    let same = |a: f32, b: f32| a == b || (a.is_nan() && b.is_nan());
    for (expression, want) in [
        ("exp_of(x)", [inf, 0.0, nan, inf, 0.0, 0.0, inf, 1.0]),
        ("tanh_of(x)", [1.0, -1.0, nan, 1.0, -1.0, -1.0, 1.0, 0.0]),
        ("erf_of(x)", [1.0, -1.0, nan, 1.0, -1.0, -1.0, 1.0, 0.0]),
        ("silu(x)", [inf, nan, nan, 88.8, 0.0, 0.0, 1e30, 0.0]),
        ("gelu_tanh(x)", [inf, nan, nan, 88.8, 0.0, 0.0, 1e30, 0.0]),
        ("larger(x, -infinity())", [inf, -inf, -inf, 88.8, -88.0, -1e30, 1e30, 0.0]),
    ] {
        let got = evaluate(&device, expression, &pairs);
        let right = got.iter().zip(want).all(|(&got, want)| same(got, want) || (got - want).abs() < 1e-36);
        assert!(right, "{expression}: {got:?}, expected {want:?}");
    }
}

#[test]
fn quotients_and_roots_are_those_of_ieee_754() {
    let Some(device) = open() else { return };
    let mut state = 1u64;
    let mut bits = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    };
    let mut pairs: Vec<[f32; 2]> =
        (0..100_000).map(|_| [f32::from_bits(bits()), f32::from_bits(bits())]).collect();
    // near 1, where quotients are near ties, and of few bits
    pairs.extend(
        (0..50_000).map(|_| [1.0 + (bits() >> 12) as f32 * 1e-6, 127.0 + (bits() & 15) as f32 * 0.125]),
    );
    pairs.extend((0..50_000).map(|_| [(bits() >> 20) as f32, 1.0 + (bits() >> 24) as f32]));
    for x in [0.0, -0.0, 1.0, f32::INFINITY, f32::NAN, 1e-45, f32::MAX, f32::MIN_POSITIVE] {
        pairs.extend([0.0, -0.0, 1.0, -3.0, f32::INFINITY, f32::NAN, 1e-45, f32::MAX].map(|y| [x, y]));
    }
    let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
    for exact in estimates() {
        let got = evaluate_with(&device, "quotient(x, y)", &exact, &pairs);
        for (&[x, y], got) in pairs.iter().zip(got) {
            assert!(same(got, x / y), "{x:e} / {y:e} is {got:e}, expected {:e}", x / y);
        }
        let got = evaluate_with(&device, "root(abs(x))", &exact, &pairs);
        for (&[x, _], got) in pairs.iter().zip(got) {
            assert!(same(got, x.abs().sqrt()), "the root of {:e} is {got:e}", x.abs());
        }
    }
}

/// `common/exact.wgsl` as it is, and with quotients and roots of the hardware that are off by as much as WGSL allows.
fn estimates() -> Vec<String> {
    let text = wgsl::EXACT.text;
    let off = |factor: &str| {
        let text =
            text.replace("u32(f32(x.mantissa) / f32", &format!("u32({factor} * f32(x.mantissa) / f32"));
        text.replace("u32(select(sqrt(", &format!("u32({factor} * select(sqrt("))
    };
    let list = vec![text.to_string(), off("1.0000004"), off("0.9999996")];
    assert!(list[1].matches("1.0000004").count() == 2);
    list
}
