//! Tensors and calls as a library user meets them, wrong use included.

use half::{bf16, f16};
use perjoule::kernels::op::{Activation, GatedKind};
use perjoule::{DType, Device, Error, Tensor, ops};

fn cpu() -> Device {
    perjoule::open("cpu").unwrap()
}

fn iota(device: &Device, shape: &[usize]) -> Tensor {
    let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(|i| i as f32).collect();
    Tensor::from_slice(device, &values, shape).unwrap()
}

/// The message of a refusal, which must say something.
fn refused<T>(result: perjoule::Result<T>) -> String {
    let message = result.err().expect("this must be refused").to_string();
    assert!(message.len() > 20, "{message}");
    message
}

#[test]
fn data_comes_back_as_it_went_in() {
    let d = cpu();
    fn round_trip<T: perjoule::Element + PartialEq + std::fmt::Debug>(device: &Device, values: &[T]) {
        let t = Tensor::from_slice(device, values, [values.len()]).unwrap();
        assert_eq!(t.to_vec::<T>().unwrap(), values);
    }
    round_trip(&d, &[1.5f32, -0.0, 3e38]);
    round_trip(&d, &[f16::from_f32(1.5), f16::MAX]);
    round_trip(&d, &[bf16::from_f32(-2.0), bf16::MIN_POSITIVE]);
    round_trip(&d, &[-128i8, 127, 0]);
    round_trip(&d, &[i32::MIN, i32::MAX]);
    round_trip(&d, &[0u32, u32::MAX]);
    let empty: Vec<f32> = Tensor::from_slice::<f32>(&d, &[], [0, 5]).unwrap().to_vec().unwrap();
    assert!(empty.is_empty());
}

#[test]
fn views_share_memory_and_read_in_their_own_order() {
    let d = cpu();
    let t = iota(&d, &[2, 3, 4]);
    let view = t.slice(1, 1..3).unwrap().transpose(0, 2).unwrap();
    assert_eq!(view.shape(), [4, 2, 2]);
    let want: Vec<f32> = (0..4)
        .flat_map(|c| (1..3).flat_map(move |b| (0..2).map(move |a| (a * 12 + b * 4 + c) as f32)))
        .collect();
    assert_eq!(view.to_vec::<f32>().unwrap(), want);
    assert_eq!(
        t.reshape([6, 4]).unwrap().slice(0, 5..6).unwrap().to_vec::<f32>().unwrap(),
        [20., 21., 22., 23.]
    );
}

#[test]
fn matmul_reads_transposed_and_batched_views() {
    let d = cpu();
    let a = iota(&d, &[2, 3]);
    let b = iota(&d, &[3, 4]);
    let want = [20., 23., 26., 29., 56., 68., 80., 92.];
    assert_eq!(ops::matmul(&a, &b).unwrap().to_vec::<f32>().unwrap(), want);
    let bt = Tensor::from_slice(&d, &[0f32, 4., 8., 1., 5., 9., 2., 6., 10., 3., 7., 11.], [4, 3]).unwrap();
    assert_eq!(ops::matmul(&a, &bt.transpose(0, 1).unwrap()).unwrap().to_vec::<f32>().unwrap(), want);
    let batched = ops::matmul(&iota(&d, &[2, 1, 3]), &b).unwrap();
    assert_eq!((batched.shape(), batched.to_vec::<f32>().unwrap()), (&[2, 1, 4][..], want.to_vec()));
    let weight = ops::Weight::pack(&bt, DType::F32, &[1, 512]).unwrap();
    assert_eq!(ops::linear(&a, &weight).run().unwrap().to_vec::<f32>().unwrap(), want);
    let bias = Tensor::from_slice(&d, &[1f32, 0., 0., -1.], [4]).unwrap();
    let silu = ops::matmul_with(&a, &b).scale(0.1).bias(&bias).activation(Activation::Silu).run().unwrap();
    let x = 0.1 * 20.0 + 1.0f32;
    assert!((silu.to_vec::<f32>().unwrap()[0] - x / (1.0 + (-x).exp())).abs() < 1e-5);
}

#[test]
fn i8_products_are_exact_and_come_as_i32() {
    let d = cpu();
    let a = Tensor::from_slice(&d, &[127i8, -128, 1, 2], [2, 2]).unwrap();
    let c = ops::matmul(&a, &a).unwrap();
    assert_eq!(c.dtype(), DType::I32);
    assert_eq!(c.to_vec::<i32>().unwrap(), [127 * 127 - 128, -127 * 128 - 256, 127 + 2, -128 + 4]);
}

#[test]
fn row_ops_do_what_they_say() {
    let d = cpu();
    let x = Tensor::from_slice(&d, &[3f32, -4.0, 0.0, 0.0], [2, 2]).unwrap();
    let ones = Tensor::from_slice(&d, &[1f32, 2.0], [2]).unwrap();
    let close = |t: &Tensor, want: &[f32]| {
        let got = t.to_vec::<f32>().unwrap();
        assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-5), "{got:?} {want:?}");
    };
    let rms = 12.5f32.sqrt();
    close(&ops::rms_norm(&x, &ones, 0.0).unwrap().slice(0, 0..1).unwrap(), &[3.0 / rms, -8.0 / rms]);
    let (sum, _) = ops::rms_norm_residual(&x, &x, &ones, 1e-6).unwrap();
    close(&sum, &[6.0, -8.0, 0.0, 0.0]);
    close(&ops::layer_norm(&x, &ones, Some(&ones), 1e-5).unwrap(), &[2.0, 0.0, 1.0, 2.0]);
    close(&ops::softmax(&x).unwrap().slice(0, 1..2).unwrap(), &[0.5, 0.5]);
    close(&ops::add(&x, &ones).unwrap(), &[4.0, -2.0, 1.0, 2.0]);
    close(&ops::gated(&x, &x, GatedKind::SwiGlu).unwrap().slice(0, 1..2).unwrap(), &[0.0, 0.0]);
    assert_eq!(ops::argmax(&x).unwrap().to_vec::<i32>().unwrap(), [0, 0]);
    let ids = Tensor::from_slice(&d, &[1i32, 0, 7], [3]).unwrap();
    let rows = ops::embed(&x, &ids, DType::F32).unwrap().to_vec::<f32>().unwrap();
    assert_eq!(rows[..4], [0.0, 0.0, 3.0, -4.0]);
    assert!(rows[4].is_nan() && rows[5].is_nan(), "an id outside the vocabulary gives NaN");
    let half = ops::cast(&x, DType::BF16).unwrap();
    assert_eq!(half.to_vec::<bf16>().unwrap()[1], bf16::from_f32(-4.0));
    let blocks = ops::quantise(&iota(&d, &[1, 32]), DType::Q8_0).unwrap();
    assert_eq!(blocks.to_bytes().unwrap().len(), 34);
    let back = ops::cast(&blocks, DType::F32).unwrap().to_vec::<f32>().unwrap();
    assert!(back.iter().enumerate().all(|(i, b)| (b - i as f32).abs() < 0.13), "{back:?}");
    let uniform = Tensor::from_slice(&d, &[0.0f32, 0.99], [2]).unwrap();
    assert_eq!(ops::sample(&x, &uniform, 1.0, Some(1), None).unwrap().to_vec::<i32>().unwrap(), [0, 0]);
}

#[test]
fn wrong_use_is_one_clear_error() {
    let d = cpu();
    let (a, b) = (iota(&d, &[2, 3]), iota(&d, &[2, 3]));
    assert!(refused(ops::matmul(&a, &b)).contains("[3, n]"));
    assert!(refused(Tensor::from_slice(&d, &[1f32, 2.0], [3])).contains("shape"));
    assert!(refused(Tensor::zeros(&d, DType::F32, [usize::MAX, 2])).contains("overflow"));
    assert!(refused(Tensor::zeros(&d, DType::F32, [1 << 45])).contains("memory"));
    assert!(refused(Tensor::zeros(&d, DType::Q4K, [4, 100])).contains("block"));
    assert!(refused(a.to_vec::<i32>()).contains("cast"));
    assert!(refused(a.slice(0, 1..4)).contains("0..2"));
    assert!(refused(a.reshape([7])).contains("6 elements"));
    assert!(refused(a.transpose(0, 1).unwrap().reshape([6])).contains("Tensor::contiguous"));
    let ids = Tensor::from_slice(&d, &[0i32], [1]).unwrap();
    assert!(refused(ops::matmul(&ids, &ids)).contains("dimensions"));
    assert!(refused(ops::softmax(&ids)).contains("softmax"));
    assert!(refused(perjoule::open("tpu")).contains("tpu"));
    assert!(refused(perjoule::open("cuda:0")).contains("cuda"));
    assert!(refused(perjoule::open_with_threads("cpu", Some(0))).contains("0 threads"));
    let other = Tensor::from_slice(&cpu(), &[1f32; 6], [3, 2]).unwrap();
    assert!(matches!(ops::matmul(&a, &other), Err(Error::WrongDevice { .. })), "two devices");
}

#[test]
fn threads_share_a_device_and_its_default_stream() {
    let d = cpu();
    std::thread::scope(|scope| {
        for t in 0..4 {
            let d = d.clone();
            scope.spawn(move || {
                for n in 1..20 {
                    let a = Tensor::from_slice(&d, &vec![t as f32; n * 5], [n, 5]).unwrap();
                    let b = Tensor::from_slice(&d, &[1f32; 5 * 3], [5, 3]).unwrap();
                    let c = ops::matmul(&a, &b).unwrap().to_vec::<f32>().unwrap();
                    assert_eq!(c, vec![t as f32 * 5.0; n * 3]);
                }
            });
        }
    });
}
