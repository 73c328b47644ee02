package process

import (
	"strings"
	"testing"
)

// TestTranslate walks to pages in every state, on every architecture.
func TestTranslate(t *testing.T) {
	for _, c := range []struct {
		arch   Arch
		levels string
		valid  string // bits of a page that was written
	}{
		{X64, "PML4 PDPT PD PT", "P RW US A D NX"},
		{X86, "PDPT PD PT", "P RW US A D"}, // without DEP
		{ARM64, "L0 L1 L2 L3", "valid page EL0 AF nG DBM PXN UXN"},
	} {
		m := newMachine(t, 64, 64, Image{Arch: c.arch})
		b := m.alloc(0x40201000-0x1000, 0x8000, MemReserve, ReadWrite)
		m.alloc(b, 0x4000, MemCommit, ReadWrite)
		is(t, "write", m.Write(b+0x1234, []byte{1}), nil)
		at := m.Translate(b + 0x1234)
		last := at.Levels[len(at.Levels)-1]
		var names []string
		for _, l := range at.Levels {
			names = append(names, l.Name)
		}
		if got := strings.Join(names, " "); got != c.levels || strings.Join(last.Bits, " ") != c.valid {
			t.Errorf("%v: levels %s, bits %v", c.arch, got, last.Bits)
		}
		info := m.space.Page((b + 0x1234) >> pageShift)
		if !at.Valid || at.Frame != info.Frame || at.Physical != uint64(info.Frame)<<12+0x234 || last.Index != 1 {
			t.Errorf("%v: %+v, want frame %d", c.arch, at, info.Frame)
		}
		ends := func(addr uint64, level int, want string) {
			t.Helper()
			at := m.Translate(addr)
			if at.Valid || !strings.Contains(at.Why, want) || len(at.Levels) != level {
				t.Errorf("%v: walk to %#x ends at level %d: %s, want %q at %d", c.arch, addr, len(at.Levels), at.Why, want, level)
			}
		}
		n := len(at.Levels)
		ends(b+0x2000, n, "demand zero")
		ends(b+0x4000, n, "reserved")
		ends(b+0x8000, n, "free")
		ends(b+0x400000, n-1, "free")
		ends(0xFFFF800000000000, 0, "not a user address")
		ends(sharedData, n, "shared page")
		m.EmptyWorkingSet()
		ends(b+0x1234, n, "soft fault")
		if _, err := m.sys.FlushModified(); err != nil {
			t.Fatal(err)
		}
		m.sys.EmptyStandby()
		ends(b+0x1234, n, "hard fault")
		_, err := m.Protect(b+0x1000, 1, ReadWrite|Guard)
		is(t, "guard", err, nil)
		ends(b+0x1234, n, "guard page")
		_, err = m.Protect(b+0x1000, 1, NoAccess)
		is(t, "no access", err, nil)
		ends(b+0x1234, n, "no access")
		_, err = m.Protect(b+0x1000, 1, ExecuteRead)
		is(t, "code", err, nil)
		is(t, "fetch", m.Execute(b+0x1000), nil)
		if bits := strings.Join(m.Translate(b + 0x1000).Levels[n-1].Bits, " "); strings.Contains(bits, "NX") ||
			strings.Contains(bits, "UXN") || strings.Contains(bits, "RW") || strings.Contains(bits, " D") {
			t.Errorf("%v: clean code has bits %s", c.arch, bits)
		}
		if s := m.Translate(b + 0x1000).String(); !strings.Contains(s, "physical 0x") || strings.Count(s, "\n") != n+2 {
			t.Errorf("%v: rendered as\n%s", c.arch, s)
		}
	}
}
