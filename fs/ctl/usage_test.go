package ctl

import (
	"slices"
	"testing"

	"memfs/mm/process"
)

// TestSmapOfSharedPage: a page that two processes have is half a page of each, though that is no whole page.
func TestSmapOfSharedPage(t *testing.T) {
	u := &process.RegionUsage{Map: process.Map{Region: process.Region{
		BaseAddress: 0x10000, RegionSize: 0x4000, State: process.StateCommit, Protect: process.ReadWrite, Type: process.TypeMapped,
	}, Use: "/file"}}
	u.Resident, u.Shared, u.Dirty, u.SharedDirty, u.Proportional = 3, 2, 1, 1, 2*process.PageSize
	u.Proportional -= process.PageSize / 2
	lines := smap(u)
	for _, want := range []string{
		"Rss:                   12 kB", "Pss:                    6 kB", "Shared_Clean:           4 kB", "Shared_Dirty:           4 kB",
		"Private_Clean:          4 kB", "Private_Dirty:          0 kB",
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("no line %q in %q", want, lines)
		}
	}
}
