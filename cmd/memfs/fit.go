package main

import (
	"fmt"
	"sort"

	"memfs/mm"
)

// Where --size is given, memory and page file that are not are made such that it fits; where they are, it is seen that
// it can.

// config is the memory manager's configuration with a page file of so many slots, as far as Plan needs it.
func (o *mountOptions) config(memory size, slots uint64) mm.Config {
	c := mm.Config{
		Memory:    uint64(memory),
		MaxMemory: max(ramBytes(), uint64(memory)),
		HostShare: float64(o.hostShare),
		Inodes:    o.inodes.limit(memory),
		Size:      uint64(o.size),
		Encrypt:   o.encrypt,
		Wipe:      o.wipe,
		Guarantee: uint64(o.reserve),
	}
	if o.compress > 0 {
		c.Compressed = &mm.CompressedConfig{Limit: uint64(float64(memory)*float64(o.compress)) / mm.PageSize * mm.PageSize}
	}
	if slots > 0 {
		c.PageFiles = []mm.PageFileConfig{{Max: slots}}
	}
	for _, f := range o.morePages {
		c.PageFiles = append(c.PageFiles, mm.PageFileConfig{Max: f.max / mm.PageSize})
	}
	return c
}

// holds is how many pages files can hold for certain: with every page table written and every inode in use.
func (o *mountOptions) holds(memory size, slots uint64) (uint64, error) {
	b, err := mm.Plan(o.config(memory, slots))
	records := (b.PTEBytes + b.InodeMax + mm.PageSize - 1) / mm.PageSize
	return b.CommitLimit - min(records, b.CommitLimit), err
}

// sizePages is --size in pages.
func (o *mountOptions) sizePages() uint64 { return uint64(o.size) / mm.PageSize }

const mebi = 1 << 20

// memoryFor is the least memory, in whole MiB, that holds size without a page file.
func (o *mountOptions) memoryFor() size {
	const least = mm.MinMemory / mebi
	// A third goes to the host's copies, and records are a small part of the rest.
	most := int(uint64(o.size)/mebi)*16 + least
	n := sort.Search(most-least, func(i int) bool {
		pages, err := o.holds(size(least+i)*mebi, 0)
		return err == nil && pages >= o.sizePages()
	})
	return size(least+n) * mebi
}

// defaultMemory is a quarter of RAM, or what size needs if that is less.
func (o *mountOptions) defaultMemory(ram uint64) (size, error) {
	quarter := size(ram / 4 &^ (mebi - 1))
	if o.size == 0 {
		return quarter, nil
	}
	needs := o.memoryFor()
	if needs > quarter && o.pageFile.none {
		return 0, fmt.Errorf("--size %s without a page file needs %s of memory, more than a quarter of RAM (%s): "+
			"say so with --memory %s, give less, or have a page file",
			&o.size, roundSize(uint64(needs)), roundSize(uint64(quarter)), &needs)
	}
	return min(needs, quarter), nil
}

// pageFileFor is how many slots the page file must be allowed for size to fit; 0 if size or a page file's own maximum
// is not given. The error says that it cannot fit.
func (o *mountOptions) pageFileFor() (uint64, error) {
	if _, err := mm.Plan(o.config(o.memory, 0)); err != nil || o.size == 0 {
		return 0, nil // what is wrong with the memory alone is said elsewhere
	}
	if o.pageFile.none || o.pageFile.max != 0 {
		return 0, o.checkFit(o.pageFile.max / mm.PageSize)
	}
	want := o.sizePages()
	enough := func(i int) bool {
		pages, err := o.holds(o.memory, uint64(i))
		return err != nil || pages >= want
	}
	slots := uint64(sort.Search(int(want)*2, enough))
	if pages, err := o.holds(o.memory, slots); err != nil || pages < want {
		return 0, fmt.Errorf("--size %s is more than --memory %s can keep records of: give less, or more memory",
			&o.size, &o.memory)
	}
	return slots, nil
}

// checkFit sees whether files of size fit at all into the memory and a page file of so many slots. Inodes are not
// counted: there need not be many.
func (o *mountOptions) checkFit(slots uint64) error {
	b, err := mm.Plan(o.config(o.memory, slots))
	if err != nil {
		return err
	}
	if o.sizePages() <= b.CommitLimit {
		return nil
	}
	with := "no page file"
	for _, f := range o.morePages {
		slots += f.max / mm.PageSize
	}
	if slots > 0 {
		with = "a page file of " + roundSize(slots*mm.PageSize)
	}
	return fmt.Errorf("--size %s does not fit: --memory %s with %s holds %s; give less, more memory, or a larger page file",
		&o.size, &o.memory, with, roundSize(b.CommitLimit*mm.PageSize))
}
