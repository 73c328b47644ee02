//go:build !soak

package integration

// hugeDirectoryNames is how many names TestHugeDirectory makes; a soak makes more.
const hugeDirectoryNames = 10_000
