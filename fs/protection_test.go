package fs

import (
	"testing"

	"memfs/mm/process"
)

// TestMaySection is which sections a file of each protection can have: MSDN CreateFileMapping, where the protection of the
// file takes the place of the access that the handle was opened with.
func TestMaySection(t *testing.T) {
	const (
		none = iota
		read = 1 << (iota - 1)
		write
		execute
	)
	rights := map[process.Protection]int{
		process.NoAccess: none, process.ReadOnly: read, process.WriteCopy: read, process.ReadWrite: read | write,
		process.Execute: read | execute, process.ExecuteRead: read | execute, process.ExecuteWriteCopy: read | execute,
		process.ExecuteReadWrite: read | write | execute,
	}
	for file, has := range rights {
		n := &node{}
		n.mu.Lock()
		n.protect = file
		n.mu.Unlock()
		for page, needs := range rights {
			if needs == none {
				continue
			}
			if got, want := n.maySection(page), has&needs == needs; got != want {
				t.Errorf("a %v section of a %v file: %v, want %v", page, file, got, want)
			}
		}
	}
}
