//! How fast each weight format is multiplied with: `formats [ROWS] [COLUMNS] [ROUNDS] [FORMAT...]`.
//!
//! One thread; random weights of `ROWS` x `COLUMNS` (8,192 x 2,048) in a mapped file, with 1, 8 and 128 rows of activations. The formats
//! take turns in each of `ROUNDS` (5) rounds; figures are medians, by the thread's own processor time.
//! `AIHOST_KERNELS` chooses the instruction set. It runs on Linux, whose clocks of threads it reads.

#![expect(clippy::print_stdout, reason = "the table is what it is for")]

use std::error::Error;
use std::fs;
use std::io::Write;
use std::time::Instant;

use aihost_engine::cpu::{Linear, kernels, project};
use aihost_engine::files::{Gguf, TensorType};
use aihost_engine::finite::is_finite;

/// Rows of activations.
const BATCHES: [usize; 3] = [1, 8, 128];
/// Seconds of one measure: a hundred ticks of a coarse kernel clock.
const MEASURE_SECONDS: f64 = 0.4;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Result<()> {
    let (sizes, names): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|arg| arg.parse::<usize>().is_ok());
    let size = |at: usize, default| sizes.get(at).and_then(|size| size.parse().ok()).unwrap_or(default);
    let (rows, columns, rounds) = (size(0, 8192), size(1, 2048), size(2, 5));
    let wanted = |kind: &TensorType| names.is_empty() || names.contains(&kind.to_string());
    let kinds: Vec<TensorType> = TensorType::all().filter(wanted).collect();

    let path = std::env::temp_dir().join(format!("formats-{}.gguf", std::process::id()));
    write_model(&path, &kinds, rows, columns)?;
    let gguf = Gguf::open(&path);
    fs::remove_file(&path)?;
    let gguf = gguf?;
    let mut measured = Vec::new();
    for kind in kinds {
        match Linear::open(gguf.tensors(), &kind.to_string(), rows, columns) {
            Ok(linear) => measured.push((kind, linear, [const { Vec::new() }; BATCHES.len()])),
            Err(e) => println!("{kind}: {e}"),
        }
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    pool.install(|| -> Result<()> {
        for _ in 0..rounds {
            for (_, linear, speeds) in &mut measured {
                for (m, speeds) in BATCHES.iter().zip(speeds) {
                    speeds.push(speed(linear, *m)?);
                }
            }
        }
        Ok(())
    })?;

    let medians: Vec<_> = measured.into_iter().map(|(kind, _, speeds)| (kind, speeds.map(spread))).collect();
    let first = medians.iter().find(|(kind, _)| *kind == TensorType::Q41).map(|(_, speeds)| speeds.map(|s| s[1]));
    println!(
        "{} kernels, {rows} x {columns}, {rounds} rounds: thousands of rows (times rows of activations) per CPU second",
        kernels::description()
    );
    println!("| format | m = 1 | of Q4_1 | GB/s | m = 8 | of Q4_1 | m = 128 | of Q4_1 |");
    println!("|---|---|---|---|---|---|---|---|");
    for (kind, speeds) in &medians {
        print!("| {kind} |");
        for (i, [least, median, most]) in speeds.iter().enumerate() {
            print!(" {:.0} ({:.0}-{:.0}) |", median / 1e3, least / 1e3, most / 1e3);
            match first {
                Some(first) => print!(" {:.2} |", median / first[i]),
                None => print!(" |"),
            }
            if i == 0 {
                print!(" {:.1} |", median * kind.bytes(columns) as f64 / 1e9);
            }
        }
        println!();
    }
    if let Some(first) = first {
        let (each, product) = (look(rows)?, rows as f64 / first[0]);
        let (micros, share) = (1e6 * each, 100.0 * each / product);
        println!(
            "looking whether {rows} results are numbers: {micros:.1} us, {share:.2} % of the product with Q4_1 that makes them"
        );
    }
    Ok(())
}

/// Seconds of this thread that it takes to see that so many results are finite.
fn look(count: usize) -> Result<f64> {
    let results = vec![0.5_f32; count];
    let (clock, start, mut times) = (cpu_seconds()?, Instant::now(), 0.0);
    while start.elapsed().as_secs_f64() < MEASURE_SECONDS {
        if !is_finite(std::hint::black_box(&results)) {
            return Err("they are".into());
        }
        times += 1.0;
    }
    Ok((cpu_seconds()? - clock) / times)
}

/// Rows of the matrix, times rows of activations, per CPU second of this thread.
fn speed(linear: &Linear, m: usize) -> Result<f64> {
    let mut next = noise(9);
    let x: Vec<f32> = (0..m * linear.columns()).map(|_| next() as f32 / u32::MAX as f32 - 0.5).collect();
    let mut out = vec![0.0; m * linear.rows()];
    project(&x, m, &mut [(linear, &mut out)]);
    let (clock, start, mut times) = (cpu_seconds()?, Instant::now(), 0);
    while start.elapsed().as_secs_f64() < MEASURE_SECONDS {
        project(&x, m, &mut [(linear, &mut out)]);
        times += 1;
    }
    Ok((times * m * linear.rows()) as f64 / (cpu_seconds()? - clock))
}

/// Seconds that this thread has run.
fn cpu_seconds() -> Result<f64> {
    let text = fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds: u64 = text.split(' ').next().ok_or("no clock")?.parse()?;
    Ok(nanoseconds as f64 / 1e9)
}

/// Least, median and most.
fn spread(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [values[0], values[values.len() / 2], values[values.len() - 1]]
}

/// A GGUF file with a matrix of each type, named as the type.
fn write_model(path: &std::path::Path, kinds: &[TensorType], rows: usize, columns: usize) -> Result<()> {
    let mut header = b"GGUF\x03\0\0\0".to_vec();
    header.extend((kinds.len() as u64).to_le_bytes());
    header.extend(0u64.to_le_bytes());
    let mut offset = 0u64;
    for kind in kinds {
        let name = kind.to_string();
        header.extend((name.len() as u64).to_le_bytes());
        header.extend(name.as_bytes());
        header.extend(2u32.to_le_bytes());
        header.extend([columns as u64, rows as u64].map(u64::to_le_bytes).as_flattened());
        header.extend(kind.number().to_le_bytes());
        header.extend(offset.to_le_bytes());
        offset += (kind.bytes(rows * columns) as u64).next_multiple_of(32);
    }
    header.resize(header.len().next_multiple_of(32), 0);
    let mut file = std::io::BufWriter::new(fs::File::create(path)?);
    file.write_all(&header)?;
    // Any 16 bits below 0x3c00 are a half that is finite; floats are drawn, as most patterns of bits are too small to be quick.
    let mut next = noise(3);
    for kind in kinds {
        let words = kind.bytes(rows * columns).next_multiple_of(32) / 4;
        for _ in 0..words {
            let word = match kind {
                TensorType::F32 => (next() as f32 / u32::MAX as f32 - 0.5).to_bits(),
                TensorType::Bf16 | TensorType::F16 => next() & 0x07ff_07ff | 0x3000_3000,
                // Among its bytes are exponents.
                TensorType::Mxfp4 => next() & 0x0f0f_0f0f | 0x7070_7070,
                _ => next() & 0x3bff_3bff,
            };
            file.write_all(&word.to_le_bytes())?;
        }
    }
    file.flush()?;
    Ok(())
}

/// A small generator, so that each run has the same numbers.
fn noise(seed: u32) -> impl FnMut() -> u32 {
    let mut state = seed;
    move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    }
}
