"""The mini-internet: resolvers, sites, certificates, a blockpage and VPN servers inside one network namespace."""
