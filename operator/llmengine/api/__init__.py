"""The custom resources as typed models; the CRDs are generated from them."""
