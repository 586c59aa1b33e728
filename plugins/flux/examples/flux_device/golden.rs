//! The golden cases in every type of number.

use std::panic::{AssertUnwindSafe, catch_unwind};

use flux::device::Dtype;
use flux::memory::Offload;
use serde_json::json;

use crate::cases::{F32, HALF, Off, cases};
use crate::{Here, Verdict, say};

pub(crate) fn run(here: &Here) {
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        let limits = if dtype == Dtype::F32 { F32 } else { HALF };
        for golden in cases(std::slice::from_ref(&here.folder)) {
            let case = golden.folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let what = format!("{case} in {dtype:?}");
            // A device that fails in one type of number may serve the next.
            let measured = catch_unwind(AssertUnwindSafe(|| {
                golden.measure(&golden.tensors(&here.device, dtype, Offload::AllResident))
            }));
            let Ok(measures) = measured else {
                say(&what, &json!("it failed; see the error output"), Verdict::Wrong);
                continue;
            };
            let mut worst_error = 0.0_f64;
            let mut worst_psnr = f64::INFINITY;
            for measure in &measures {
                match measure.off {
                    Off::Error(error) => worst_error = worst_error.max(error),
                    Off::Psnr(psnr) => worst_psnr = worst_psnr.min(psnr),
                }
                if !measure.is_within(limits) {
                    say(&format!("{what}: {}", measure.name), &json!(format!("{:?}", measure.off)), Verdict::Wrong);
                }
            }
            let right = measures.iter().all(|measure| measure.is_within(limits));
            let value = json!({
                "stages": measures.len(), "worst_relative_error": worst_error, "error_limit": limits.error,
                "worst_psnr_db": worst_psnr, "psnr_limit_db": limits.psnr,
            });
            say(&what, &value, Verdict::of(right));
        }
    }
}
