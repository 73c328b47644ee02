package fs

import (
	"math"
	"strconv"
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"memfs/fs/ctl"
	"memfs/mapping"
	"memfs/mm"
	"memfs/mm/pfn"
)

// Rules say how the pages of a file are treated: mm.Rule. They are kept as extended attributes user.memfs.NAME, so that
// cp -a, tar and rsync carry them along, and setfattr(1) sets them as well as a ctl does. On a directory they do nothing
// but to be inherited by what is made in it.
const rulePrefix = "user.memfs."

// rulePart is one part of a rule: what its attribute may say, and what that means.
type rulePart struct {
	name  string
	usual string // what it is without an attribute
	valid func(value string) bool
	apply func(r *mm.Rule, value string)
}

var ruleParts = []rulePart{
	{ctl.RulePriority, string(rune('0' + pfn.DefaultPriority)),
		func(v string) bool { return len(v) == 1 && v[0] >= '0' && v[0] < '0'+pfn.Priorities },
		func(r *mm.Rule, v string) { r.Priority = v[0] - '0' }},
	{ctl.RulePin, "0", isSwitch, func(r *mm.Rule, v string) { r.Pinned = v == "1" }},
	{ctl.RuleNoSwap, "0", isSwitch, func(r *mm.Rule, v string) { r.NoSwap = v == "1" }},
	{ctl.RuleWorkingSet, "0",
		func(v string) bool { n, err := ctl.ParseSize(v); return err == nil && n >= 0 },
		func(r *mm.Rule, v string) { r.MaxResident = pagesOf(v) }},
	{ctl.RuleProtection, defaultProtection.String(),
		func(v string) bool { _, ok := parseProtection(v); return ok },
		func(*mm.Rule, string) {}}, // of the file, not of its pages: see protection.go
}

// xattr is the attribute that says the part.
func (p *rulePart) xattr() string { return rulePrefix + p.name }

// pagesOf is a valid number of bytes in pages, as far as they can be counted.
func pagesOf(v string) uint32 {
	n, _ := ctl.ParseSize(v)
	return uint32(min((uint64(n)+mm.PageSize-1)>>mm.PageShift, math.MaxUint32))
}

func isSwitch(v string) bool { return v == "0" || v == "1" }

// rulePartOf is the part of a rule that an attribute says, nil if it says none.
func rulePartOf(xattr string) *rulePart {
	name, ok := strings.CutPrefix(xattr, rulePrefix)
	for i := range ruleParts {
		if p := &ruleParts[i]; ok && p.name == name {
			return p
		}
	}
	return nil
}

// ruleOf is the rule that attributes say.
func ruleOf(xattrs map[string][]byte) mm.Rule {
	r := mm.DefaultRule()
	for _, p := range ruleParts {
		if value, ok := xattrs[p.xattr()]; ok && p.valid(string(value)) {
			p.apply(&r, string(value))
		}
	}
	return r
}

// inheritRules adds the rules of the directory to a seed.
func (s *seed) inheritRules(dir map[string][]byte) {
	if kind := s.mode & syscall.S_IFMT; kind != syscall.S_IFREG && kind != syscall.S_IFDIR {
		return
	}
	for _, p := range ruleParts {
		if value, ok := dir[p.xattr()]; ok {
			if s.rules == nil {
				s.rules = make(map[string][]byte)
			}
			s.rules[p.xattr()] = value
		}
	}
}

// setRule is the setxattr(2) of a part of a rule. The attribute and the pages' treatment change together or not at all.
func (n *node) setRule(part *rulePart, c xattrChange) (read uint64, err error) {
	if !part.valid(string(c.value)) {
		return 0, syscall.EINVAL
	}
	if part.name == ctl.RuleProtection {
		if err := n.beforeProtection(string(c.value)); err != nil {
			return 0, err
		}
	}
	if err := n.ruleWith(part, string(c.value)).Check(); err != nil {
		return 0, err
	}
	old, had, st := n.xattr(c.name)
	if !st.Ok() {
		return 0, syscall.Errno(st)
	}
	if st := n.changeXattr(c); !st.Ok() {
		return 0, syscall.Errno(st)
	}
	if read, err = n.followRules(); err == nil {
		return read, nil
	}
	if had {
		_ = n.changeXattr(xattrChange{name: c.name, value: old})
	} else {
		_ = n.dropXattr(c.name)
	}
	return read, err
}

// ruleWith is the rule with one part of it changed.
func (n *node) ruleWith(part *rulePart, value string) mm.Rule {
	r := n.rule()
	part.apply(&r, value)
	return r
}

// xattr copies a value.
func (n *node) xattr(name string) (value []byte, ok bool, st fuse.Status) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.refs.gone {
		return nil, false, fuse.ENOENT
	}
	value, ok = n.xattrs[name]
	return value, ok, fuse.OK
}

// followRules has the pages follow what the attributes say.
func (n *node) followRules() (read uint64, err error) {
	n.followProtection()
	if n.section == nil {
		return 0, nil
	}
	n.mu.Lock()
	rule := ruleOf(n.xattrs)
	n.mu.Unlock()
	return n.section.SetRule(rule)
}

// SetRule is the ctl's way to set a part of a rule (ctl.Steered).
func (n *node) SetRule(name, value string) (read uint64, err error) {
	part := rulePartOf(rulePrefix + name)
	if value != part.usual {
		return n.setRule(part, xattrChange{name: part.xattr(), value: []byte(value)})
	}
	switch st := n.dropXattr(part.xattr()); {
	case st == fuse.ENODATA:
		return 0, nil
	case !st.Ok():
		return 0, syscall.Errno(st)
	}
	return n.followRules()
}

// rule is how the node's pages are treated; of a directory, those of what is made in it.
func (n *node) rule() mm.Rule {
	n.mu.Lock()
	defer n.mu.Unlock()
	return ruleOf(n.xattrs)
}

// ruleText is what the control file of a part of the rule says.
func (n *node) ruleText(name string) string {
	r := n.rule()
	switch name {
	case ctl.RulePriority:
		return strconv.Itoa(int(r.Priority))
	case ctl.RuleWorkingSet:
		return strconv.FormatUint(uint64(r.MaxResident)*mm.PageSize, 10)
	case ctl.RulePin:
		if r.Pinned {
			return "1"
		}
		return "0"
	}
	return n.protection().String()
}

// setRuleText is a write to it.
func (n *node) setRuleText(name string, text []byte) fuse.Status {
	if name == ctl.RuleProtection {
		return n.setProtection(text)
	}
	value := strings.TrimSpace(string(text))
	if !rulePartOf(rulePrefix + name).valid(value) {
		return fuse.EINVAL
	}
	_, err := n.SetRule(name, value)
	return errno(err)
}

// controlled is a regular file as its controls see it.
type controlled struct {
	*mapping.Section
	node *node
}

func (c controlled) SetRule(name, value string) (uint64, error) { return c.node.SetRule(name, value) }

// Discard makes the bytes [off, off+n) zeros without writing them anywhere; n < 0 is to the end.
func (c controlled) Discard(off, n int64) error {
	if st := c.node.mayChange(false); !st.Ok() {
		return syscall.Errno(st)
	}
	if n < 0 {
		n = c.Size() - off
	}
	if n <= 0 {
		return nil
	}
	if err := c.Section.Discard(off, n); err != nil {
		return err
	}
	c.node.changed()
	c.node.forgetAttributes()
	return nil
}
