package ctl

import (
	"fmt"
	"strings"

	"memfs/mm"
	"memfs/mm/process"
)

// What a process's memory consists of: maps, smaps, pagemap, workingset and limits.

func processMaps(p *Process) *Doc {
	d := new(Doc)
	maps := p.Usage()
	d.Table("maps", []Column{
		{Head: "Base", Key: "base", Width: 12}, {Head: "Size", Key: "size_bytes", Width: 12}, {Head: "State", Key: "state", Width: 11},
		{Head: "Type", Key: "type", Width: 11}, {Head: "Protect", Key: "protect", Width: 24, Left: true},
		{Head: "AllocationBase", Key: "allocation_base", Width: 14, Digits: 12},
		{Head: "AllocationProtect", Key: "allocation_protect", Width: 24, Left: true}, {Head: "Rss", Key: "rss_bytes", Width: 10},
		{Head: "Use", Key: "use"},
	}, func(yield func([]Value) bool) {
		for _, m := range maps {
			if !yield([]Value{Hex(m.BaseAddress), Count(m.RegionSize), Word(m.State.String()), Word(m.Type.String()),
				protection(m.Protect), Hex(m.AllocationBase), protection(m.AllocationProtect), Count(m.Resident << mm.PageShift),
				Word(m.Use)}) {
				return
			}
		}
	})
	return d
}

func protection(p process.Protection) Value {
	if p == 0 {
		return None()
	}
	return Word(p.String())
}

// processSmaps has the form of /proc/PID/smaps, so that what reads that reads this; reserved memory is a mapping without
// rights, as it is there. Protect is Win32's.
func processSmaps(p *Process) *Doc {
	d := new(Doc)
	all := p.Usage()
	var lines []string
	for i := range all {
		lines = append(lines, smap(&all[i])...)
	}
	d.Lines("", lines...)
	d.Records("smaps", []Column{
		{Key: "base"}, {Key: "size_bytes"}, {Key: "state"}, {Key: "type"}, {Key: "protect"}, {Key: "use"}, {Key: "committed_bytes"},
		{Key: "rss_bytes"}, {Key: "pss_bytes"}, {Key: "shared_clean_bytes"}, {Key: "shared_dirty_bytes"}, {Key: "private_clean_bytes"}, {Key: "private_dirty_bytes"}, {Key: "swap_bytes"},
		{Key: "locked_bytes"},
	}, func(yield func([]Value) bool) {
		for _, u := range all {
			private := u.Resident - u.Shared
			dirty := u.Dirty - u.SharedDirty
			row := []Value{Hex(u.BaseAddress), Count(u.RegionSize), Word(u.State.String()), Word(u.Type.String()), protection(u.Protect),
				Word(u.Use)}
			for _, bytes := range []uint64{u.Committed << mm.PageShift, u.Resident << mm.PageShift, u.Proportional,
				(u.Shared - u.SharedDirty) << mm.PageShift, u.SharedDirty << mm.PageShift, (private - dirty) << mm.PageShift,
				dirty << mm.PageShift, u.Paged << mm.PageShift, u.Locked << mm.PageShift} {
				row = append(row, Count(bytes))
			}
			if !yield(row) {
				return
			}
		}
	})
	return d
}

func smap(u *process.RegionUsage) []string {
	prot := u.Protect
	may := func(ok bool, c byte) byte {
		if ok {
			return c
		}
		return '-'
	}
	share := byte('p')
	if u.Type == process.TypeMapped {
		share = 's'
	}
	readable := prot != 0 && prot.Readable()
	flags := []string{}
	for _, f := range []struct {
		on   bool
		name string
	}{
		{readable, "rd"}, {readable && prot.Writable(), "wr"}, {readable && prot.Executable(), "ex"}, {share == 's', "sh"},
		{true, "mr mw me"}, {u.Use == "stack", "gd"}, {u.Locked > 0, "lo"},
	} {
		if f.on {
			flags = append(flags, f.name)
		}
	}
	lines := []string{strings.TrimRight(fmt.Sprintf("%08x-%08x %c%c%c%c %08x 00:00 0 %-25s %s", u.BaseAddress, u.BaseAddress+u.RegionSize,
		may(readable, 'r'), may(readable && prot.Writable(), 'w'), may(readable && prot.Executable(), 'x'), share, u.Offset, "", use(u.Use)), " ")}
	private := u.Resident - u.Shared
	dirty := u.Dirty - u.SharedDirty
	for _, f := range []struct {
		label string
		pages uint64
	}{
		{"Size", u.RegionSize >> mm.PageShift}, {"KernelPageSize", 1}, {"MMUPageSize", 1}, {"Rss", u.Resident}, {"Pss", 0},
		{"Shared_Clean", u.Shared - u.SharedDirty}, {"Shared_Dirty", u.SharedDirty}, {"Private_Clean", private - dirty}, {"Private_Dirty", dirty},
		{"Referenced", u.Resident}, {"Anonymous", private + u.Combined}, {"Swap", u.Paged}, {"SwapPss", u.Paged}, {"Locked", u.Locked},
	} {
		bytes := f.pages << mm.PageShift
		if f.label == "Pss" {
			bytes = u.Proportional // which are no whole pages
		}
		lines = append(lines, fmt.Sprintf("%-16s %8d kB", f.label+":", bytes>>10))
	}
	lines = append(lines, "VmFlags: "+strings.Join(flags, " "))
	if prot != 0 {
		lines = append(lines, fmt.Sprintf("%-16s %v", "Protect:", prot))
	}
	return lines
}

// use is what a region is used for as the last column of smaps has it.
func use(name string) string {
	if name == "" || strings.HasPrefix(name, "/") || name == "(deleted)" {
		return name
	}
	return "[" + name + "]"
}

// pteNames are the forms of a PTE, as the processor or the memory manager finds it.
var pteNames = map[byte]string{
	mm.StateCommitted: "DemandZero", mm.StateActive: "Valid", mm.StatePaged: "Paged", mm.StateCompressed: "Paged",
}

func processPages(p *Process) *Doc {
	d := new(Doc)
	d.Table("pages", []Column{
		{Head: "Address", Key: "address", Width: 12}, {Head: "State", Key: "state", Width: 10}, {Head: "Frame", Key: "frame", Width: 8},
		{Head: "Dirty", Key: "dirty", Width: 5, Left: true}, {Head: "PageFile", Key: "pagefile", Width: 8}, {Head: "Slot", Key: "slot", Width: 8},
		{Head: "PTE", Key: "pte", Width: 10, Left: true}, {Head: "Accessed", Key: "accessed", Width: 8, Left: true},
		{Head: "Locked", Key: "locked", Width: 6, Left: true}, {Head: "WriteCopy", Key: "write_copy", Width: 9, Left: true},
		{Head: "Shares", Key: "shares", Width: 6}, {Head: "Sharers", Key: "sharers", Width: 7},
		{Head: "Protect", Key: "protect", Left: true},
	}, func(yield func([]Value) bool) {
		maps := p.Maps()
		at := 0
		p.Pages(func(i mm.PageInfo) bool {
			addr := i.Index << mm.PageShift
			for at < len(maps)-1 && addr >= maps[at].BaseAddress+maps[at].RegionSize {
				at++
			}
			var prot process.Protection
			if at < len(maps) && addr >= maps[at].BaseAddress {
				prot = maps[at].Protect
			}
			pte, ok := pteNames[i.State]
			if !ok {
				pte = "Transition"
			}
			row := []Value{Hex(addr), Word(stateNames[i.State]), None(), None(), None(), None(), Word(pte),
				Flag(i.State == mm.StateActive), Flag(i.Locked), Flag(prot&(process.WriteCopy|process.ExecuteWriteCopy) != 0),
				Count(uint64(i.Shares)), Count(uint64(i.Sharers)), protection(prot)}
			if i.Frame >= 0 {
				row[2], row[3] = Count(uint64(i.Frame)), Flag(i.Dirty)
			}
			if i.Slot >= 0 {
				row[4], row[5] = Count(uint64(i.PageFile)), Count(uint64(i.Slot))
			}
			return yield(row)
		})
	})
	return d
}

// processWorkingSet is what QueryWorkingSet says, a line a page.
func processWorkingSet(p *Process) *Doc {
	d := new(Doc)
	d.Table("pages", []Column{
		{Head: "Address", Key: "address", Width: 12}, {Head: "Locked", Key: "locked", Width: 6, Left: true},
		{Head: "Shares", Key: "shares", Width: 6}, {Head: "Protect", Key: "protect", Left: true},
	}, func(yield func([]Value) bool) {
		for _, w := range p.WorkingSet() {
			if !yield([]Value{Hex(w.Address), Flag(w.Locked), Count(uint64(w.ShareCount)), protection(w.Protection)}) {
				return
			}
		}
	})
	return d
}

// processLimits has the form of /proc/PID/limits.
func processLimits(p *Process) *Doc {
	d := new(Doc)
	low, high, flags := p.WorkingSetSize()
	quota := p.Image().Limits
	if p.IsSystem() {
		quota = process.Limits{} // its own are there to keep calls from allocating anything in it
	}
	rows := []struct {
		name       string
		soft, hard uint64 // 0 = unlimited
		unit       string
	}{
		{"Max address space", quota.Virtual, quota.Virtual, "bytes"},
		{"Max commit", quota.Commit, quota.Commit, "bytes"},
		{"Min working set", low, 0, "bytes"},
		{"Max working set", high, 0, "bytes"},
		{"Max locked memory", p.MaxLocked(), p.MaxLocked(), "bytes"},
	}
	if flags&process.HardMinEnable != 0 {
		rows[2].hard = low
	}
	if flags&process.HardMaxEnable != 0 {
		rows[3].hard = high
	}
	lines := []string{fmt.Sprintf("%-25s %-20s %-20s %s", "Limit", "Soft Limit", "Hard Limit", "Units")}
	for _, r := range rows {
		lines = append(lines, fmt.Sprintf("%-25s %-20s %-20s %s", r.name, unlimited(r.soft), unlimited(r.hard), r.unit))
	}
	d.Lines("", lines...)
	d.Records("limits", []Column{{Key: "limit"}, {Key: "soft"}, {Key: "hard"}, {Key: "units"}}, func(yield func([]Value) bool) {
		number := func(n uint64) Value {
			if n == 0 {
				return None()
			}
			return Count(n)
		}
		for _, r := range rows {
			if !yield([]Value{Word(r.name), number(r.soft), number(r.hard), Word(r.unit)}) {
				return
			}
		}
	})
	return d
}

func unlimited(n uint64) string {
	if n == 0 {
		return "unlimited"
	}
	return fmt.Sprint(n)
}
