"""What runs inside the servers: the models once, and for each server the code that hands them in.

Each file but this one runs in a server's own environment, where neither `bench` nor, but for
Headrace, the SDK is installed. What a server is to do comes in environment variables
(`networks.Order`).
"""
