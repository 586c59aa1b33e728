//! The export macro: the descriptor in its ELF section, and the root module behind its symbol.

/// Makes a `cdylib` an aihost plugin.
///
/// The keys, in any order, become the manifest, which is read without running the plugin:
///
/// | key | value | if left out |
/// |---|---|---|
/// | `plugin` | a type that implements [`Plugin`](crate::Plugin) | is needed |
/// | `id` | `"vendor/name"` in a-z, 0-9, `-`, `_`, `.` | is needed |
/// | `devices` | `["cpu", "cuda"]`: where it can run | is needed |
/// | `formats` | `["gguf", "safetensors"]`: weights that it reads; `"folder"` among them: also a folder of such files | none, and whatever there is is passed on |
/// | `max_concurrency` | requests that an instance serves at once | 1 |
/// | `parks` | whether [`park`](crate::Engine::park) works | `false` |
/// | `memory_static` | whether memory no longer grows after a load | `false` |
/// | `prepares` | whether [`prepare`](crate::Plugin::prepare) makes something | `false` |
/// | `grammar` | whether every answer is as [`TextRequest::format`](crate::TextRequest) and [`ToolChoice`](crate::ToolChoice) say, by [`LogitsProcessor`](crate::LogitsProcessor) or otherwise | `false`, and such requests are refused |
/// | `permissions` | `["network", "subprocess", "files"]`: what it may do beside reading its model's files | none |
///
/// The kind is that of the engine's [`Task`](crate::Engine::Task). Version, authors, license and description are Cargo.toml's.
///
/// What a host would refuse to read does not compile:
///
/// ```compile_fail
/// # use aihost_plugin_api::{Context, Engine, FinishReason, LoadContext, LoadRequest, MemoryPlan, Plugin, Result, Text, TextOutput, TextRequest};
/// # #[derive(serde::Deserialize, schemars::JsonSchema)]
/// # struct Options {}
/// # struct Parrot;
/// # impl Plugin for Parrot {
/// #     type Options = Options;
/// #     type Engine = Self;
/// #     fn new(_: Options) -> Result<Self> { Ok(Self) }
/// #     fn plan(&self, _: &LoadRequest) -> Result<MemoryPlan> { Ok(MemoryPlan::default()) }
/// #     fn load(&self, _: &LoadRequest, _: &LoadContext) -> Result<Self> { Ok(Self) }
/// # }
/// # impl Engine for Parrot {
/// #     type Task = Text;
/// #     fn generate(&self, _: TextRequest, _: &TextOutput, _: &Context) -> Result<FinishReason> { Ok(FinishReason::Stop) }
/// # }
/// aihost_plugin_api::export_plugin! { plugin: Parrot, id: "Example/Parrot", devices: ["cpu"] }
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! export_plugin {
    ($($key:tt)*) => {
        $crate::__export_plugin! { @find [] $($key)* }
    };
}

/// Finds `plugin` among the keys, whose value is a type; the others' are single tokens.
#[doc(hidden)]
#[macro_export]
macro_rules! __export_plugin {
    (@find [$($before:tt)*] plugin: $plugin:ty $(, $($after:tt)*)?) => {
        $crate::__export_plugin! { @export $plugin, $($before)* $($($after)*)? }
    };
    (@find [$($before:tt)*] $key:ident: $value:tt $(, $($after:tt)*)?) => {
        $crate::__export_plugin! { @find [$($before)* $key: $value,] $($($after)*)? }
    };
    (@find $before:tt) => {
        compile_error!("`plugin` is needed: the type that implements `Plugin`");
    };
    (@value [$($value:literal),* $(,)?]) => { &[$($value),*] };
    (@value $value:tt) => { $value };
    (@export $plugin:ty, $($key:ident: $value:tt),* $(,)?) => {
        #[allow(unreachable_pub, reason = "the symbols the host looks for; the macro is the only one to write them")]
        const _: () = {
            const MANIFEST: $crate::private::manifest::ManifestSource<'static> = $crate::private::manifest::ManifestSource {
                $($key: $crate::__export_plugin!(@value $value),)*
                ..$crate::private::manifest::ManifestSource {
                    version: env!("CARGO_PKG_VERSION"),
                    authors: env!("CARGO_PKG_AUTHORS"),
                    license: env!("CARGO_PKG_LICENSE"),
                    description: env!("CARGO_PKG_DESCRIPTION"),
                    ..$crate::private::manifest::ManifestSource::DEFAULT
                }
            }
            .of_kind(&<<<$plugin as $crate::Plugin>::Engine as $crate::Engine>::Task as $crate::Task>::KIND)
            .checked();

            // SAFETY: a section of its own name, of plain bytes; nothing else writes into it.
            #[unsafe(link_section = ".aihost.plugin")]
            #[used]
            static DESCRIPTOR: $crate::abi::Descriptor<{ MANIFEST.json_bytes() }> =
                $crate::abi::Descriptor::new($crate::private::manifest::SDK_VERSION, MANIFEST.json());

            extern "C" fn describe() -> $crate::private::abi_stable::std_types::RVec<u8> {
                $crate::private::glue::describe::<$plugin>()
            }

            extern "C" fn instantiate(
                host: $crate::abi::RawHostArc,
                options: $crate::private::abi_stable::std_types::RSlice<'_, u8>,
            ) -> $crate::private::abi_stable::std_types::RResult<$crate::abi::RawModelBox, $crate::abi::RawError> {
                $crate::private::glue::instantiate::<$plugin>(host, options)
            }

            fn root() -> $crate::abi::Root_Ref {
                use $crate::private::abi_stable::prefix_type::PrefixTypeTrait;
                $crate::abi::Root { describe, instantiate }.leak_into_prefix()
            }

            extern "C" fn erased_root() -> $crate::private::abi_stable::library::RootModuleResult {
                $crate::private::abi_stable::library::__call_root_module_loader(root)
            }

            // SAFETY: the symbol name abi_stable looks for; the constructor's type is the one whose layout the header carries.
            #[unsafe(no_mangle)]
            pub static _1as_0lib_1header_0root_bmodule_bloader: $crate::private::abi_stable::library::LibHeader = unsafe {
                $crate::private::abi_stable::library::LibHeader::from_constructor::<$crate::abi::Root_Ref>(
                    erased_root,
                    $crate::private::abi_stable::library::CheckTypeLayout::Yes,
                )
            };
        };
    };
}
