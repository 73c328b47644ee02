package process

import "memfs/mm"

// Usage is the pages behind a region.
type Usage struct {
	Committed uint64 // in the process's own memory
	Resident  uint64 // in its working set
	Shared    uint64 // of those: pages of sections, which other processes may have as well, and combined ones
	Combined  uint64 // of those: the process's own, combined with others of the same bytes
	Dirty     uint64 // of the resident: with bytes that no store has
	// SharedDirty are those of both kinds.
	SharedDirty uint64
	// Proportional is the resident pages' size in bytes, each divided by the processes that have it.
	Proportional uint64
	Locked       uint64
	Paged        uint64 // in a page file or compressed, and in no frame
}

// RegionUsage is a region of maps with the pages behind it.
type RegionUsage struct {
	Map
	Usage
}

// Usage lists the regions that are not free with what is behind them. Pages may move while it looks.
func (p *Process) Usage() []RegionUsage {
	maps := p.Maps()
	all := make([]RegionUsage, len(maps))
	for i, m := range maps {
		all[i].Map = m
		if p.regions != nil {
			n := m.RegionSize >> pageShift
			all[i].Usage = Usage{Committed: n, Resident: n, Proportional: m.RegionSize, Dirty: n, Locked: n}
		}
	}
	at := 0
	p.Pages(func(i mm.PageInfo) bool {
		addr := i.Index << pageShift
		for at < len(all) && addr >= all[at].BaseAddress+all[at].RegionSize {
			at++
		}
		if at == len(all) {
			return false
		}
		if addr >= all[at].BaseAddress {
			all[at].Usage.add(i)
		}
		return true
	})
	return all
}

func (u *Usage) add(i mm.PageInfo) {
	if !i.Shared || i.Promised {
		u.Committed++
	}
	switch i.State {
	case mm.StateActive:
		u.Resident++
		u.Proportional += PageSize / uint64(max(i.Shares, 1))
		shared := i.Shared || i.Sharers > 1
		if shared {
			u.Shared++
		}
		if shared && !i.Shared {
			u.Combined++
		}
		if shared && i.Dirty {
			u.SharedDirty++
		}
		if i.Dirty {
			u.Dirty++
		}
		if i.Locked {
			u.Locked++
		}
	case mm.StatePaged, mm.StateCompressed:
		u.Paged++
	}
}
