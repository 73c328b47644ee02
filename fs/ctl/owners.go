package ctl

import "memfs/mm"

// Owner is a line of owners: who filled the mount, and who makes it fault.
type Owner struct {
	Kind string // user: all that the user's programs did; process: one that is alive; simulated: a simulated process
	UID  uint32
	Rest bool // the users beyond those that are told apart
	Pid  uint64
	Comm string

	Files    uint64 // that it wrote last
	Holdings mm.Holdings
	Largest  string // of the files, by what is committed

	Soft, Hard    uint64 // pages that came back for it from a list, and from a store
	Read, Written uint64 // bytes that its requests asked for, and that came from its descriptors
}

func owners(m *Mount) *Doc {
	d := new(Doc)
	d.Table("owners", []Column{
		{Head: "Kind", Key: "kind", Width: 9},
		{Head: "Uid", Key: "uid", Width: 6},
		{Head: "Pid", Key: "pid", Width: 7},
		{Head: "Comm", Key: "comm", Width: 15, Left: true},
		{Head: "Files", Key: "files", Width: 7},
		{Head: "Committed", Key: "committed_bytes", Width: 13},
		{Head: "InMemory", Key: "in_memory_bytes", Width: 13},
		{Head: "Paged", Key: "paged_bytes", Width: 13},
		{Head: "Compressed", Key: "compressed_bytes", Width: 13},
		{Head: "SoftFaults", Key: "soft_faults", Width: 10},
		{Head: "HardFaults", Key: "hard_faults", Width: 10},
		{Head: "Read", Key: "read_bytes", Width: 13},
		{Head: "Written", Key: "written_bytes", Width: 13},
		{Head: "Largest", Key: "largest"},
	}, func(yield func([]Value) bool) {
		if m.Owners == nil {
			return
		}
		for _, o := range m.Owners() {
			if !yield(ownerRow(&o)) {
				return
			}
		}
	})
	return d
}

func ownerRow(o *Owner) []Value {
	bytes := func(pages uint64) Value { return Count(pages * mm.PageSize) }
	word := func(s string) Value {
		if s == "" {
			return None()
		}
		return Word(s)
	}
	uid, pid := Count(uint64(o.UID)), None()
	if o.Rest {
		uid = None()
	}
	if o.Pid != 0 {
		pid = Count(o.Pid)
	}
	return []Value{
		Word(o.Kind), uid, pid, word(o.Comm), Count(o.Files),
		bytes(o.Holdings.Committed), bytes(o.Holdings.InMemory), bytes(o.Holdings.Paged), bytes(o.Holdings.Compressed),
		Count(o.Soft), Count(o.Hard), Count(o.Read), Count(o.Written), word(o.Largest),
	}
}
