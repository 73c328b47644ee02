//go:build race

package integration

// raceBuild says that this test, and so the memfs it starts, has the race detector built in: slower, and with several
// times the memory.
const raceBuild = true
