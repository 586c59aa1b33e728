//! The export macro: the descriptor in its ELF section, and the root module behind its symbol.

/// Makes a `cdylib` an aihost plugin.
///
/// `plugin` is a type that implements [`Plugin`](crate::Plugin); the other keys become the manifest, which is read
/// without running the plugin. Keys after `devices` are optional, in this order: `formats`, `max_concurrency` (1),
/// `parks` (false), `memory_static` (false), `permissions`. Version, authors, license and description are Cargo.toml's.
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
/// aihost_plugin_api::export_plugin! { plugin: Parrot, id: "Example/Parrot", kinds: ["text"], devices: ["cpu"] }
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! export_plugin {
    (
        plugin: $plugin:ty,
        id: $id:literal,
        kinds: [$($kind:literal),* $(,)?],
        devices: [$($device:literal),* $(,)?]
        $(, formats: [$($format:literal),* $(,)?])?
        $(, max_concurrency: $concurrency:literal)?
        $(, parks: $parks:literal)?
        $(, memory_static: $memory_static:literal)?
        $(, permissions: [$($permission:literal),* $(,)?])?
        $(,)?
    ) => {
        #[allow(unreachable_pub, reason = "the symbols the host looks for; the macro is the only one to write them")]
        const _: () = {
            const MANIFEST: $crate::sdk::manifest::ManifestSource<'static> = $crate::sdk::manifest::ManifestSource {
                id: $id,
                version: env!("CARGO_PKG_VERSION"),
                authors: env!("CARGO_PKG_AUTHORS"),
                license: env!("CARGO_PKG_LICENSE"),
                description: env!("CARGO_PKG_DESCRIPTION"),
                kinds: &[$($kind),*],
                devices: &[$($device),*],
                $(formats: &[$($format),*],)?
                $(max_concurrency: $concurrency,)?
                $(parks: $parks,)?
                $(memory_static: $memory_static,)?
                $(permissions: &[$($permission),*],)?
                ..$crate::sdk::manifest::ManifestSource::DEFAULT
            }
            .checked();

            // SAFETY: a section of its own name, of plain bytes; nothing else writes into it.
            #[unsafe(link_section = ".aihost.plugin")]
            #[used]
            static DESCRIPTOR: $crate::abi::Descriptor<{ MANIFEST.json_bytes() }> =
                $crate::abi::Descriptor::new(MANIFEST.json());

            extern "C" fn describe() -> $crate::private::abi_stable::std_types::RVec<u8> {
                $crate::sdk::glue::describe::<$plugin>()
            }

            extern "C" fn instantiate(
                host: $crate::abi::RawHostArc,
                options: $crate::private::abi_stable::std_types::RSlice<'_, u8>,
            ) -> $crate::private::abi_stable::std_types::RResult<$crate::abi::RawModelBox, $crate::abi::RawError> {
                $crate::sdk::glue::instantiate::<$plugin>(host, options)
            }

            extern "C" fn query(
                _id: $crate::private::abi_stable::std_types::RStr<'_>,
            ) -> $crate::private::abi_stable::std_types::ROption<u64> {
                $crate::private::abi_stable::std_types::ROption::RNone
            }

            fn root() -> $crate::abi::Root_Ref {
                use $crate::private::abi_stable::prefix_type::PrefixTypeTrait;
                $crate::abi::Root { describe, instantiate, query }.leak_into_prefix()
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
