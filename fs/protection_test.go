package fs

import (
	"testing"

	"memfs/mm/process"
)

// TestMayAccess is how a simulated process may open a file of each protection.
func TestMayAccess(t *testing.T) {
	rights := map[process.Protection]string{
		process.NoAccess: "", process.ReadOnly: "r", process.WriteCopy: "r", process.ReadWrite: "rw", process.Execute: "rx",
		process.ExecuteRead: "rx", process.ExecuteWriteCopy: "rx", process.ExecuteReadWrite: "rwx",
	}
	for protection, has := range rights {
		n := &node{}
		n.mu.Lock()
		n.protect = protection
		n.mu.Unlock()
		for bits := range 8 {
			access, allowed := uint32(0), has != ""
			for i, right := range []uint32{process.GenericRead, process.GenericWrite, process.GenericExecute} {
				if bits&(1<<i) != 0 {
					access |= right
					allowed = allowed && len(has) > 0 && containsByte(has, "rwx"[i])
				}
			}
			if got := n.mayAccess(access); got != allowed {
				t.Errorf("access %#x of a %v file: %v, want %v", access, protection, got, allowed)
			}
		}
		if got := n.mayAccess(process.GenericAll); got != (has == "rwx") {
			t.Errorf("all access of a %v file: %v", protection, got)
		}
	}
}

func containsByte(s string, b byte) bool {
	for i := range len(s) {
		if s[i] == b {
			return true
		}
	}
	return false
}
