use perjoule_kernels::op::Add;
use perjoule_kernels::{Arg, DType, Device, Op, prepare, select};
use perjoule_webgpu::WebGpuDevice;
use std::time::Instant;
fn main() {
    let t = Instant::now();
    let device = WebGpuDevice::open(0).unwrap();
    println!("open {:?}", t.elapsed());
    let op = Op::from(Add::dense(1, 16, DType::F32));
    let t = Instant::now();
    let add = prepare(&device, &op, select(&device, &op, &[]).unwrap(), None).unwrap();
    println!("prepare {:?}", t.elapsed());
    let mut stream = device.stream().unwrap();
    let b: Vec<_> = (0..3).map(|_| device.alloc(64).unwrap()).collect();
    let t = Instant::now();
    for _ in 0..1000 {
        add.launch(&mut *stream, &mut [Arg::Buf(&b[0]), Arg::Buf(&b[1]), Arg::Buf(&b[2])]).unwrap();
    }
    println!("eager {:?} a launch", t.elapsed() / 1000);
    stream.sync().wait().unwrap();
    println!("with sync {:?}", t.elapsed() / 1000);
    let graph = stream
        .capture(&mut |s| {
            for i in 0..1000 {
                add.launch(s, &mut [Arg::Buf(&b[i % 2]), Arg::Buf(&b[i % 2]), Arg::Buf(&b[2])])?;
            }
            Ok(())
        })
        .unwrap();
    for _ in 0..5 {
        let t = Instant::now();
        stream.replay(&graph).unwrap();
        let enc = t.elapsed();
        stream.sync().wait().unwrap();
        println!("replay {:?} a dispatch, {:?} with execution", enc / 1000, t.elapsed() / 1000);
    }
}
