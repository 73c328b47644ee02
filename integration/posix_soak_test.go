//go:build soak

package integration

// hugeDirectoryNames is how many names TestHugeDirectory makes.
const hugeDirectoryNames = 100_000
