//! Every variant of every source that rows ask for, parsed and validated by naga, without an adapter: a device that runs nothing prepares the
//! ops of the conformance suite. Devices differ in what they can do, since rows look at it.

use perjoule_kernels::{Device, prepare};
use perjoule_suite::{Scope, cases, subjects};
use perjoule_webgpu::WebGpuDevice;

fn check(features: wgpu::Features, limits: wgpu::Limits) {
    let (device, queue) = wgpu::Device::noop(&wgpu::DeviceDescriptor {
        required_features: features,
        required_limits: limits,
        // SAFETY: nothing runs on it.
        experimental_features: unsafe { wgpu::ExperimentalFeatures::enabled() },
        ..Default::default()
    });
    let device = WebGpuDevice::of_device(device, queue);
    let mut prepared = 0;
    for choice in subjects(&device) {
        // a row without cases needs what this device lacks
        for case in cases(&device, &choice, Scope::Sample).unwrap_or_default() {
            if let Err(error) = prepare(&device, &case.op, choice, None) {
                panic!("{} on {}: {error}", choice.kernel.name, case.op);
            }
            prepared += 1;
        }
    }
    device.compiled().unwrap_or_else(|error| panic!("{error}"));
    assert!(prepared > 0, "{}", device.info().name);
}

#[test]
fn what_runs_everywhere_keeps_to_the_limits_of_every_browser() {
    check(wgpu::Features::empty(), wgpu::Limits::default());
}

#[test]
fn what_uses_features_is_valid() {
    let features = wgpu::Features::SHADER_F16
        | wgpu::Features::SUBGROUP
        | wgpu::Features::IMMEDIATES
        | wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
    let limits = wgpu::Limits {
        max_storage_buffers_per_shader_stage: 24,
        max_compute_workgroup_storage_size: 49_152,
        max_compute_invocations_per_workgroup: 1024,
        max_compute_workgroup_size_x: 1024,
        max_immediate_size: 128,
        ..wgpu::Limits::default()
    };
    check(features, limits);
}
